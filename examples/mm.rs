use advect::op::{Caps, Op, prepare};
use advect::ops::Matmul;
use advect::target::presets;
use advect::verify::*;
use advect::{Dtype, Memory};
use std::collections::*;
struct Nowhere(u64);
impl Memory for Nowhere {
    fn byte_len(&self) -> u64 {
        1 << 40
    }
    fn place(&self) -> (u64, u64) {
        (self.0, 0)
    }
}
fn main() {
    let arg = std::env::args().nth(1).unwrap();
    if arg == "emit" {
        let mut seen = BTreeMap::new();
        let big = |d| {
            let mut v = Matmul::cases(d);
            // sizes that reach the large tiles
            for c in Matmul::cases(d)
                .iter()
                .filter(|c| c.name.contains("m=64 n=64 k=32") || c.name.contains("residual"))
            {
                let mut c = c.clone();
                c.name += " BIG";
                v.push(c);
            }
            v
        };
        for d in Dtype::ALL {
            for case in big(d) {
                let mut s = 0;
                let args = Matmul::map(
                    case.args,
                    |_, v| {
                        s += 1;
                        v.try_map(|_| Ok(Nowhere(s)))
                    },
                    |_, v| v.try_map(|()| Ok(Nowhere(0))),
                )
                .unwrap();
                let (mut params, sig) = prepare(&case.op, &args).unwrap();
                if case.name.ends_with("BIG") {
                    params.m = 4096;
                    params.n = 4096;
                }
                let mut devs: Vec<Caps> = presets::cuda();
                devs.truncate(2);
                for caps in devs {
                    let plan = case.op.plan(&params, &sig, &caps).unwrap();
                    let src = advect::source::source::<Matmul>(&sig, &plan.consts, caps.language);
                    let key = format!(
                        "{} {} {:?} {:?} {}",
                        plan.entry,
                        d,
                        plan.consts.iter().collect::<Vec<_>>(),
                        sig.slots().iter().map(|s| s.dtype.is_some()).collect::<Vec<_>>(),
                        if plan.entry == "matmul_mma" { 80 } else { 75 }
                    );
                    seen.insert(key, src);
                }
            }
        }
        let dir = "/tmp/mm";
        std::fs::create_dir_all(dir).unwrap();
        for (i, (k, src)) in seen.iter().enumerate() {
            std::fs::write(format!("{dir}/{i:03}.cu"), format!("// {k}\n{src}")).unwrap();
        }
        println!("{} variants", seen.len());
        return;
    }
    let filter = std::env::args().nth(2);
    let devs = devices().unwrap();
    let mut n: BTreeMap<String, (usize, usize, usize, f64)> = BTreeMap::new();
    let sel = Selection { case: filter, fuzz: 40, ..Default::default() };
    verify::<Matmul>(&devs, &sel, &mut |o| {
        let e = n.entry(format!("{} {}", o.device, o.dtype)).or_default();
        match &o.status {
            Status::Pass => e.0 += 1,
            Status::Fail(w) => {
                e.1 += 1;
                println!("FAIL {} {} {}: {w}", o.device, o.dtype, o.case)
            }
            Status::Skip(w) => {
                e.2 += 1;
                println!("SKIP {w}")
            }
        }
        e.3 = e.3.max(o.worst);
    });
    for (k, v) in n {
        println!("{k}: pass {} fail {} skip {} worst {:.3}", v.0, v.1, v.2, v.3)
    }
}
