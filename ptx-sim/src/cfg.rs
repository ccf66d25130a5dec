//! Basic blocks, and the order in which a diverged warp runs them.
//!
//! Lanes of one warp that are at different blocks run one block at a time, the first in this order. If the
//! order is topological, and keeps every loop together before what follows it, then lanes wait where their
//! paths meet until the others arrive: they come together again at the earliest point there is, early
//! returns and irreducible loops included. This is a weak topological order (F. Bourdoncle, Efficient
//! chaotic iteration strategies with widenings, 1993): strongly connected components in topological order,
//! each opened at its header and ordered again without it.

use crate::ir::{Call, CallTarget, Inst, Op};

const MAX_LOOP_DEPTH: u32 = 64;

/// Where control can go from the last instruction of a block, as indices of instructions.
pub(crate) fn successors(pc: u32, inst: &Inst) -> Vec<u32> {
    let mut out = match &inst.op {
        Op::Bra { target } | Op::Goto { target } => vec![*target],
        Op::Brx { targets, .. } => targets.clone(),
        Op::Ret | Op::Exit | Op::Trap => vec![],
        _ => return vec![pc + 1],
    };
    if inst.guard.is_some() {
        out.push(pc + 1);
    }
    out
}

/// Whether lanes can be at different places after an instruction. An indirect call is a block of its own:
/// lanes with another target come back to it.
pub(crate) fn ends_block(op: &Op) -> bool {
    match op {
        Op::Bra { .. } | Op::Goto { .. } | Op::Brx { .. } | Op::Ret | Op::Exit | Op::Trap => true,
        Op::Call(call) => is_indirect(call),
        Op::Bar { aligned, .. } => !aligned,
        _ => false,
    }
}

pub(crate) fn is_indirect(call: &Call) -> bool {
    matches!(call.target, CallTarget::Indirect(_))
}

/// For every instruction that starts a block its rank, `u32::MAX` for the others. `leaders` is sorted.
pub(crate) fn rank(code: &[Inst], leaders: &[u32]) -> Vec<u32> {
    let n = leaders.len();
    let mut block_of = vec![u32::MAX; code.len()];
    for (b, &pc) in leaders.iter().enumerate() {
        block_of[pc as usize] = b as u32;
    }
    let mut next: Vec<Vec<u32>> = Vec::with_capacity(n);
    for b in 0..n {
        let end = leaders.get(b + 1).map_or(code.len(), |&pc| pc as usize);
        let last = end - 1;
        let list = successors(last as u32, &code[last]);
        next.push(
            list.iter()
                .filter_map(|&pc| block_of.get(pc as usize))
                .copied()
                .filter(|&b| b != u32::MAX)
                .collect(),
        );
    }
    let mut ranks = vec![u32::MAX; code.len()];
    for (rank, block) in weak_topological_order(&next).into_iter().enumerate() {
        ranks[leaders[block as usize] as usize] = rank as u32;
    }
    ranks
}

/// What is known of a node while components are sought. For all nodes at once, so that a set costs what it has.
#[derive(Clone, Copy, Default)]
struct Scratch {
    index: u32,
    low: u32,
    on_stack: bool,
}

enum Work {
    Emit(u32),
    /// Nodes still to be ordered, and how many loops surround them.
    Order(Vec<u32>, u32),
}

fn weak_topological_order(next: &[Vec<u32>]) -> Vec<u32> {
    let mut order = Vec::with_capacity(next.len());
    // The set a node currently belongs to; edges that leave the set do not count.
    let mut set = vec![0u32; next.len()];
    let mut sets = 0;
    let mut scratch = vec![Scratch::default(); next.len()];
    let mut work = vec![Work::Order((0..next.len() as u32).collect(), 0)];
    while let Some(item) = work.pop() {
        match item {
            Work::Emit(node) => order.push(node),
            Work::Order(nodes, depth) if depth > MAX_LOOP_DEPTH => order.extend(nodes),
            Work::Order(nodes, depth) => {
                sets += 1;
                for &node in &nodes {
                    set[node as usize] = sets;
                }
                // Components arrive last first: the stack turns them round.
                for component in components(next, &nodes, &set, sets, &mut scratch) {
                    let (header, rest) = (component[0], component[1..].to_vec());
                    if !rest.is_empty() {
                        work.push(Work::Order(rest, depth + 1));
                    }
                    work.push(Work::Emit(header));
                }
            }
        }
    }
    order
}

/// Strongly connected components in reverse topological order, each with the node first reached in front
/// (R. Tarjan, 1972), without recursion.
fn components(next: &[Vec<u32>], nodes: &[u32], set: &[u32], this: u32, of: &mut [Scratch]) -> Vec<Vec<u32>> {
    const NEW: u32 = u32::MAX;
    for &node in nodes {
        of[node as usize] = Scratch { index: NEW, low: 0, on_stack: false };
    }
    let mut stack = Vec::new();
    let mut out = Vec::new();
    let mut count = 0;
    let mut sorted = nodes.to_vec();
    sorted.sort_unstable();
    for &root in &sorted {
        if of[root as usize].index != NEW {
            continue;
        }
        let mut path: Vec<(u32, usize)> = vec![(root, 0)];
        while let Some((node, edge)) = path.last_mut() {
            let v = *node as usize;
            if *edge == 0 {
                of[v].index = count;
                of[v].low = count;
                count += 1;
                stack.push(*node);
                of[v].on_stack = true;
            }
            let mut descend = None;
            while let Some(&w) = next[v].get(*edge) {
                *edge += 1;
                if set[w as usize] != this {
                    continue;
                }
                if of[w as usize].index == NEW {
                    descend = Some(w);
                    break;
                }
                if of[w as usize].on_stack {
                    of[v].low = of[v].low.min(of[w as usize].index);
                }
            }
            if let Some(w) = descend {
                path.push((w, 0));
                continue;
            }
            let node = *node;
            path.pop();
            if let Some(&(parent, _)) = path.last() {
                of[parent as usize].low = of[parent as usize].low.min(of[v].low);
            }
            if of[v].low == of[v].index {
                let at = stack.iter().rposition(|&s| s == node).unwrap_or(0);
                let component = stack.split_off(at);
                for &member in &component {
                    of[member as usize].on_stack = false;
                }
                out.push(component);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_stay_together_before_their_exit() {
        // 0 -> 1; 1 -> {4, 2}; 2 -> {3, 4}; 3 -> 1; 4: a loop 1 2 3 with two exits to 4.
        let order = weak_topological_order(&[vec![1], vec![4, 2], vec![3, 4], vec![1], vec![]]);
        assert_eq!(order, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_join_placed_before_its_branch_in_the_text_comes_after_it() {
        // 0 -> {3, 1}; 3 -> 1; 1 -> 2: block 3 is an out-of-line slow path.
        let order = weak_topological_order(&[vec![3, 1], vec![2], vec![], vec![1]]);
        assert_eq!(order, [0, 3, 1, 2]);
    }

    #[test]
    fn nested_and_irreducible_loops_are_ordered() {
        let order =
            weak_topological_order(&[vec![1, 2], vec![2, 3], vec![1], vec![3, 4], vec![0, 5], vec![]]);
        assert_eq!(order.len(), 6);
        assert_eq!(order[0], 0);
        assert_eq!(order[5], 5);
    }

    #[test]
    fn many_blocks_need_no_deep_stack() {
        let n = 100_000u32;
        let chain: Vec<Vec<u32>> = (0..n).map(|i| if i + 1 < n { vec![i + 1] } else { vec![] }).collect();
        assert_eq!(weak_topological_order(&chain).len(), n as usize);
    }
}
