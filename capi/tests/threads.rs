//! One device, many threads.

mod common;

use advect_capi::*;
use common::*;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A handle that goes to other threads.
struct Shared<T>(*mut T);

impl<T> Copy for Shared<T> {}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

// SAFETY: handles may be used from any thread.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

#[test]
fn devices_are_shared_and_messages_are_not() {
    for device in devices().into_iter().map(Shared) {
        let input = Shared(with_values(device.get(), ADVECT_F32, &[16, 16], &noise(1, 256)));
        std::thread::scope(|scope| {
            for thread in 0..6u32 {
                scope.spawn(move || {
                    let x = view(input.get());
                    let out = view(tensor(device.get(), ADVECT_F32, &[16, 16]));
                    let scale = thread as f32 + 1.0;
                    for round in 0..20 {
                        let mut args = advect_step_args { out: &raw const out, ..sized() };
                        args.x[0] = &raw const x;
                        args.coefficients[0] = scale;
                        // SAFETY: each thread writes a tensor of its own.
                        unsafe {
                            ok(advect_step(device.get(), &raw const args));
                            let wrong = advect_step_args { noise: 100 + thread, ..args };
                            let status = advect_step(device.get(), &raw const wrong);
                            std::thread::yield_now();
                            refused(status, ADVECT_ERROR_ARGUMENT, &format!("got {}", 100 + thread));
                        }
                        if round % 10 == 9 {
                            let wanted: Vec<f32> = noise(1, 256).iter().map(|x| x * scale).collect();
                            assert_eq!(values(out.tensor, 256), wanted);
                        }
                    }
                    // SAFETY: a handle of this thread.
                    ok(unsafe { advect_tensor_destroy(out.tensor) });
                });
            }
        });
        // SAFETY: handles of this test.
        unsafe {
            ok(advect_tensor_destroy(input.get()));
            ok(advect_device_destroy(device.get()));
        }
    }
}

/// Tensors destroyed, many times over, while others use them: each call works or is told that its handle is
/// stale, and each handle is destroyed once.
#[test]
fn destruction_races_with_use() {
    let device = Shared(open("cpu"));
    for _ in 0..40 {
        let x = Shared(with_values(device.get(), ADVECT_F32, &[64], &[3.0; 64]));
        let viewed = view(x.get());
        let viewed = Shared(Box::into_raw(Box::new(viewed)));
        let destroyed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let destroyed = &destroyed;
                scope.spawn(move || {
                    let out = view(tensor(device.get(), ADVECT_F32, &[64]));
                    let mut args = advect_step_args { out: &raw const out, ..sized() };
                    args.x[0] = viewed.get();
                    args.coefficients[0] = 2.0;
                    for _ in 0..10 {
                        // SAFETY: the view stays; its tensor may go, which is what is tested.
                        match unsafe { advect_step(device.get(), &raw const args) } {
                            ADVECT_OK => assert_eq!(values(out.tensor, 64), [6.0; 64]),
                            status => refused(status, ADVECT_ERROR_HANDLE, "destroyed"),
                        }
                    }
                    // SAFETY: handles are numbers, whatever they are.
                    unsafe {
                        if thread > 1 && advect_tensor_destroy(x.get()) == ADVECT_OK {
                            destroyed.fetch_add(1, Ordering::Relaxed);
                        }
                        ok(advect_tensor_destroy(out.tensor));
                    }
                });
            }
        });
        assert_eq!(destroyed.into_inner(), 1);
        // SAFETY: made above, and no thread is left.
        drop(unsafe { Box::from_raw(viewed.get()) });
    }
    // SAFETY: a handle of this test.
    ok(unsafe { advect_device_destroy(device.get()) });
}

/// A device destroyed while others use it: each call works or is told that its handle is stale, and the tensors stay.
#[test]
fn a_device_goes_while_it_is_used() {
    for round in 0..4 {
        for device in devices().into_iter().map(Shared) {
            let ready = &std::sync::Barrier::new(3);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(move || {
                        let [x, out] = [1.0, 0.0]
                            .map(|v| Shared(with_values(device.get(), ADVECT_F32, &[4096], &[v; 4096])));
                        let (from, to) = (view(x.get()), view(out.get()));
                        let mut args = advect_step_args { out: &raw const to, ..sized() };
                        (args.x[0], args.coefficients[0]) = (&raw const from, 2.0);
                        ready.wait();
                        let mut ran = false;
                        for turn in 0.. {
                            // SAFETY: the views are of living tensors; the device may go, which is what is tested.
                            match unsafe { advect_step(device.get(), &raw const args) } {
                                ADVECT_OK => ran = true,
                                status => {
                                    refused(status, ADVECT_ERROR_HANDLE, "destroyed");
                                    break;
                                }
                            }
                            if turn == 5 * round {
                                // SAFETY: a handle is a number, and one of the threads is the first.
                                unsafe { advect_device_destroy(device.get()) };
                            }
                        }
                        assert_eq!(values(out.get(), 4096), [if ran { 2.0 } else { 0.0 }; 4096]);
                        for t in [x, out] {
                            // SAFETY: handles of this thread.
                            ok(unsafe { advect_tensor_destroy(t.get()) });
                        }
                    });
                }
            });
        }
    }
}

/// A solver asked from several threads gives each question once.
#[test]
fn a_solver_is_asked_by_many() {
    let options = advect_solver_options { method: ADVECT_METHOD_RK4, steps: 500, ..sized() };
    let mut solver = null_mut();
    // SAFETY: the struct says its size.
    ok(unsafe { advect_solver_new(&raw const options, &raw mut solver) });
    let (solver, evaluations) = (Shared(solver), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut ask: advect_ask = sized();
                loop {
                    // SAFETY: the struct says its size.
                    ok(unsafe { advect_solver_next(solver.get(), &raw mut ask) });
                    match ask.kind {
                        ADVECT_ASK_EVAL => drop(evaluations.fetch_add(1, Ordering::Relaxed)),
                        ADVECT_ASK_DONE => break,
                        _ => {}
                    }
                }
            });
        }
    });
    assert_eq!(evaluations.into_inner(), 2000);
    // SAFETY: a handle of this test.
    ok(unsafe { advect_solver_destroy(solver.get()) });
}
