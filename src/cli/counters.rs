//! `advect verify --counters`: what kernels executed and moved on a simulated GPU. The rules of counting are
//! in the simulator's README.

use advect::Device;
use advect::verify::Outcome;
use std::io::Write;

#[cfg(not(feature = "ptx-sim"))]
pub(super) use absent::Counted;
#[cfg(feature = "ptx-sim")]
pub(super) use present::Counted;

/// Builds without the simulator have nothing to count.
#[cfg(not(feature = "ptx-sim"))]
mod absent {
    use super::*;

    #[derive(Default)]
    pub(crate) struct Counted(());

    impl Counted {
        pub(crate) fn note(&mut self, _: &Device, _: &Outcome, _: bool) -> Option<serde_json::Value> {
            None
        }

        pub(crate) fn print(&self, _: &mut impl Write) -> std::io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(feature = "ptx-sim")]
mod present {
    use super::*;
    use ptx_sim::{Banks, Class, Counters, Traffic};
    use serde_json::{Value, json};

    /// Sums of launches that belong together, in the order in which they first came.
    #[derive(Default)]
    pub(crate) struct Counted(Vec<Group>);

    struct Group {
        title: String,
        launches: u64,
        sum: Counters,
    }

    impl Counted {
        /// Takes up the launch that made this outcome, and returns its counts; with `by_case` each case is a
        /// group of its own, else each kernel.
        pub(crate) fn note(&mut self, device: &Device, outcome: &Outcome, by_case: bool) -> Option<Value> {
            let Device::PtxSim(sim) = device else { return None };
            let launched = sim.take_launch()?;
            let case = if by_case { format!(" [{}]", outcome.case) } else { String::new() };
            let title = format!("{} {} on {}{case}", launched.kernel, outcome.dtype, outcome.device);
            let group = match self.0.iter().position(|g| g.title == title) {
                Some(i) => &mut self.0[i],
                None => {
                    self.0.push(Group { title, launches: 0, sum: Counters::default() });
                    self.0.last_mut()?
                }
            };
            group.launches += 1;
            group.sum += &launched.counters;
            Some(to_json(launched.kernel, &launched.counters))
        }

        /// A block of lines a group.
        pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
            for Group { title, launches, sum } in &self.0 {
                let plural = if *launches == 1 { "" } else { "es" };
                writeln!(out, "\n{title}, {launches} launch{plural} of {} blocks in all", sum.blocks)?;
                block(out, sum)?;
            }
            writeln!(out)
        }
    }

    fn block(out: &mut impl Write, c: &Counters) -> std::io::Result<()> {
        let lanes = c.thread_instructions as f64 / c.warp_instructions.max(1) as f64;
        writeln!(
            out,
            "  instructions   {} of warps, {} of threads ({lanes:.1} lanes of 32)",
            c.warp_instructions, c.thread_instructions
        )?;
        let mut classes: Vec<(Class, u64)> = Class::ALL.map(|k| (k, c.class(k))).into_iter().collect();
        classes.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
        let shares: Vec<String> = classes
            .iter()
            .filter(|(_, n)| *n > 0)
            .map(|(class, n)| format!("{class:?} {:.1} %", percent(*n, c.warp_instructions)).to_lowercase())
            .collect();
        writeln!(out, "                 {}", shares.join(", "))?;
        writeln!(out, "  flops          {} on tensor cores, {} elsewhere", c.tensor_flops, c.flops)?;
        for (name, t) in [
            ("global loads", &c.global_load),
            ("global stores", &c.global_store),
            ("global atomics", &c.global_atomic),
        ] {
            traffic(out, name, t)?;
        }
        banks(out, "shared loads", &c.shared_load)?;
        banks(out, "shared stores", &c.shared_store)?;
        if c.local_bytes > 0 {
            writeln!(out, "  local memory   {} bytes", c.local_bytes)?;
        }
        let share = percent(c.divergent_branches, c.branches);
        writeln!(out, "  branches       {}, {} divergent ({share:.1} %)", c.branches, c.divergent_branches)?;
        writeln!(out, "  barriers       {}", c.barriers)
    }

    fn traffic(out: &mut impl Write, name: &str, t: &Traffic) -> std::io::Result<()> {
        if t.requests == 0 {
            return Ok(());
        }
        writeln!(
            out,
            "  {name:<14} {} requests, {} bytes: {} sectors, {} at the fewest ({:.1} %), {} lines",
            t.requests,
            t.bytes,
            t.sectors,
            t.min_sectors,
            100.0 * t.efficiency(),
            t.lines
        )
    }

    fn banks(out: &mut impl Write, name: &str, b: &Banks) -> std::io::Result<()> {
        if b.requests == 0 {
            return Ok(());
        }
        let share = percent(b.conflicts(), b.cycles);
        writeln!(
            out,
            "  {name:<14} {} requests, {} bytes: {} cycles, {} of them by bank conflicts ({share:.1} %)",
            b.requests,
            b.bytes,
            b.cycles,
            b.conflicts()
        )
    }

    fn percent(part: u64, whole: u64) -> f64 {
        100.0 * part as f64 / whole.max(1) as f64
    }

    fn to_json(kernel: &str, c: &Counters) -> Value {
        let traffic = |t: &Traffic| {
            json!({
                "requests": t.requests, "bytes": t.bytes, "sectors": t.sectors,
                "min_sectors": t.min_sectors, "lines": t.lines,
            })
        };
        let banks = |b: &Banks| json!({ "requests": b.requests, "bytes": b.bytes, "phases": b.phases, "cycles": b.cycles });
        let classes: serde_json::Map<String, Value> = Class::ALL
            .map(|class| (format!("{class:?}").to_lowercase(), c.class(class).into()))
            .into_iter()
            .collect();
        json!({
            "kernel": kernel,
            "blocks": c.blocks,
            "warp_instructions": c.warp_instructions,
            "thread_instructions": c.thread_instructions,
            "by_class": classes,
            "flops": c.flops,
            "tensor_flops": c.tensor_flops,
            "global_load": traffic(&c.global_load),
            "global_store": traffic(&c.global_store),
            "global_atomic": traffic(&c.global_atomic),
            "shared_load": banks(&c.shared_load),
            "shared_store": banks(&c.shared_store),
            "local_bytes": c.local_bytes,
            "branches": c.branches,
            "divergent_branches": c.divergent_branches,
            "barriers": c.barriers,
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_block_states_shares_of_what_was_counted() {
            let mut c = Counters::default();
            c.warp_instructions = 4;
            c.thread_instructions = 64;
            c.by_class[Class::Global as usize] = 1;
            c.by_class[Class::Integer as usize] = 3;
            c.global_load = Traffic { requests: 1, sectors: 8, min_sectors: 4, lines: 2, bytes: 128 };
            c.shared_load = Banks { requests: 1, phases: 1, cycles: 4, bytes: 128 };
            (c.branches, c.divergent_branches) = (4, 1);
            let mut text = Vec::new();
            block(&mut text, &c).unwrap();
            let text = String::from_utf8(text).unwrap();
            for part in [
                "4 of warps, 64 of threads (16.0 lanes of 32)",
                "integer 75.0 %, global 25.0 %\n",
                "8 sectors, 4 at the fewest (50.0 %), 2 lines",
                "4 cycles, 3 of them by bank conflicts (75.0 %)",
                "4, 1 divergent (25.0 %)",
            ] {
                assert!(text.contains(part), "{part} is not in\n{text}");
            }
            assert!(!text.contains("global stores"), "{text}");
        }
    }
}
