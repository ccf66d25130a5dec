//! Matrix products, cross-checked on every device, and bad input tried one by one.

use advect::ops::Matmul;

#[test]
fn cross_check() {
    advect::verify::assert_op::<Matmul>(60);
}
