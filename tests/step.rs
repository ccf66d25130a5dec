//! The solver step.
#[test]
fn cross_check() {
    advect::verify::assert_op::<advect::ops::Step>(60);
}
