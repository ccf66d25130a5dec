//! Resampling, cross-checked on every device.

use advect::ops::Resample;

#[test]
fn cross_check() {
    advect::verify::assert_op::<Resample>(40);
}
