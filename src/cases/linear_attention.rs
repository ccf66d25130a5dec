//! Cases of linear attention: what models make of it, each option alone, token counts around every chunk, heads of all
//! kinds, states in and out, decays that erase the state and decays that leave it alone.

use super::attention::Lay;
use crate::dtype::Dtype;
use crate::ops::{FeatureMap, LinearAttention, LinearAttentionArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// Batch, heads, queries, elements of a head of Q and K, and of V.
type Sizes = [usize; 5];

/// What a case has besides the necessary.
#[derive(Debug, Clone)]
enum Extra {
    /// Heads of Q, K and V.
    Heads([usize; 3]),
    /// Another number of keys.
    Keys(usize),
    /// Decays of a token, or of each channel: their logarithms, in f32 or the dtype of the others.
    Decay(bool, bool, Fill),
    /// Decays that differ from head to head alone, as RetNet's.
    Retention,
    Beta(bool, Fill),
    /// Keys of length 1, as the delta rule has them.
    Unit,
    /// What fills Q and K.
    Filled(Fill),
    Initial,
    Final,
}

/// Numbers between -1 and 1 that look like noise.
fn some(at: usize) -> f32 {
    ((at * 7919 + 31) % 2003) as f32 / 1001.5 - 1.0
}

fn shown(fill: &Fill) -> String {
    match fill {
        Fill::Constant(x) => format!("{x}"),
        Fill::Uniform(low, high) => format!("{low}..{high}"),
        Fill::Normal(deviation) => format!("n{deviation}"),
        Fill::Values(list) => format!("{:?}", &list[..list.len().min(5)]).replace(' ', ""),
    }
}

impl Extra {
    /// The case with it.
    fn to(&self, mut case: Case<LinearAttention>, lay: Lay) -> Case<LinearAttention> {
        let args = &mut case.args;
        let dtype = args.q.dtype();
        let (&[b, h, n, dv], &[.., d]) = (args.out.shape(), args.q.shape()) else {
            unreachable!("four axes")
        };
        let states = args.k.shape()[1].max(args.v.shape()[1]);
        let nk = args.k.shape()[2];
        let columns = dv + usize::from(case.op.normalize.is_some());
        let gate = |single: bool| if single { Dtype::F32 } else { dtype };
        let lay = lay.apart();
        let name = match self {
            Self::Heads([q, k, v]) => {
                args.q = lay.view(0, dtype, [b, *q, n, d], args.q.memory().clone());
                args.k = lay.view(1, dtype, [b, *k, nk, d], args.k.memory().clone());
                args.v = lay.view(2, dtype, [b, *v, nk, dv], args.v.memory().clone());
                format!("heads={q},{k},{v}/{h}")
            }
            Self::Keys(nk) => {
                let [k_heads, v_heads] = [args.k.shape()[1], args.v.shape()[1]];
                args.k = lay.view(1, dtype, [b, k_heads, *nk, d], args.k.memory().clone());
                args.v = lay.view(2, dtype, [b, v_heads, *nk, dv], args.v.memory().clone());
                format!("nk={nk}")
            }
            Self::Decay(per_channel, single, fill) => {
                let (shape, layout) = match per_channel {
                    true => (vec![b, states, nk, d], Layout::Gaps(vec![0, 2, 1, 3])),
                    false => (vec![b, states, nk], Layout::Order(vec![0, 2, 1])),
                };
                args.log_decay = Some(view(gate(*single), &shape, &layout, fill.clone()));
                let of = if *per_channel { "channel" } else { "token" };
                format!("decay={of},{},{}", gate(*single), shown(fill))
            }
            Self::Retention => {
                let of_head =
                    |at: usize| (1.0 - 0.5f32.powi(3 + (at / nk.max(1) % states.max(1)) as i32)).ln();
                let fill = Fill::Values((0..(b * states * nk).max(1)).map(of_head).collect());
                args.log_decay =
                    Some(view(Dtype::F32, &[b, states, nk], &Layout::Broadcast(vec![0, 2]), fill));
                "decay=heads".into()
            }
            Self::Beta(single, fill) => {
                let layout = Layout::Gaps(vec![1, 0, 2]);
                args.beta = Some(view(gate(*single), &[b, states, nk], &layout, fill.clone()));
                format!("beta={},{}", gate(*single), shown(fill))
            }
            Self::Unit => {
                let count: usize = args.k.shape().iter().product();
                let mut keys: Vec<f32> = (0..count.max(1)).map(some).collect();
                for key in keys.chunks_mut(d.max(1)) {
                    let length = key.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-3);
                    key.iter_mut().for_each(|x| *x /= length);
                }
                *args.k.memory_mut() = Fill::Values(keys);
                "unit".into()
            }
            Self::Filled(fill) => {
                *args.q.memory_mut() = fill.clone();
                *args.k.memory_mut() = fill.clone();
                format!("values={}", shown(fill))
            }
            Self::Initial => {
                // Sums of keys are positive where they are divided by.
                let at = |at: usize| if at % columns.max(1) == dv { 2.0 + some(at) } else { some(at) };
                let fill = Fill::Values((0..(b * states * d * columns).max(1)).map(at).collect());
                args.initial_state =
                    Some(view(Dtype::F32, &[b, states, d, columns], &Layout::Gaps(vec![1, 0, 2, 3]), fill));
                "initial".into()
            }
            Self::Final => {
                let layout = Layout::Gaps(vec![0, 1, 3, 2]);
                args.final_state = Some(view(Dtype::F32, &[b, states, d, columns], &layout, ()));
                "final".into()
            }
        };
        case.name += &format!(" {name}");
        case
    }
}

fn case(
    op: LinearAttention,
    dtype: Dtype,
    sizes: Sizes,
    (layout, lay): (&str, Lay),
    extras: &[Extra],
) -> Case<LinearAttention> {
    let [b, h, n, d, dv] = sizes;
    let normal = || Fill::Normal(1.0);
    let mut name = format!("b={b} h={h} n={n} d={d} dv={dv} scale={}", op.scale);
    if op.causal {
        name += " causal";
    }
    if op.feature_map != FeatureMap::Identity {
        name += &format!(" map={}", op.feature_map.name());
    }
    if let Some(eps) = op.normalize {
        name += &format!(" eps={eps:e}");
    }
    name += &format!(" layout={layout}");
    // Heads of V of another size have a projection of their own.
    let of_v = if d == dv { lay } else { lay.apart() };
    let args = LinearAttentionArgs::new(
        lay.view(0, dtype, [b, h, n, d], normal()),
        lay.view(1, dtype, [b, h, n, d], normal()),
        of_v.view(2, dtype, [b, h, n, dv], normal()),
        of_v.view(3, dtype, [b, h, n, dv], ()),
    );
    extras.iter().fold(Case { name, op, args }, |case, extra| extra.to(case, lay))
}

/// What models make of it: name of the model, op, heads, extras.
fn models() -> Vec<(LinearAttention, [usize; 3], Vec<Extra>)> {
    use Extra::{Beta, Decay, Filled, Final, Heads, Initial, Retention, Unit};
    let causal = LinearAttention::new(16).causal();
    let elu = LinearAttention::scaled(1.0).feature_map(FeatureMap::EluPlusOne).normalize(1e-6);
    let uniform = Fill::Uniform;
    vec![
        // Without decays; RetNet; Mamba-2, whose heads share B and C; GLA.
        (causal, [2, 16, 24], vec![]),
        (causal, [3, 16, 24], vec![Retention]),
        (causal, [4, 16, 24], vec![Heads([1, 1, 4]), Decay(false, true, uniform(-1.0, 0.0)), Initial, Final]),
        (causal, [2, 16, 24], vec![Decay(true, false, uniform(-0.5, 0.0))]),
        (causal, [2, 16, 24], vec![Decay(true, true, uniform(-4.0, 0.0)), Initial, Final]),
        // DeltaNet; gated, with more heads of values; with decays of channels (Kimi Linear); beta up to 2.
        (causal, [2, 16, 24], vec![Unit, Beta(false, uniform(0.0, 1.0))]),
        (
            causal,
            [4, 16, 24],
            vec![
                Heads([2, 2, 4]),
                Unit,
                Decay(false, true, uniform(-0.7, 0.0)),
                Beta(true, uniform(0.0, 1.0)),
                Initial,
                Final,
            ],
        ),
        (
            causal,
            [2, 16, 24],
            vec![Unit, Decay(true, true, uniform(-0.5, 0.0)), Beta(true, uniform(0.0, 1.0)), Final],
        ),
        (causal, [2, 16, 24], vec![Unit, Beta(true, uniform(0.0, 2.0)), Initial]),
        // Transformers are RNNs, both ways; SANA's blocks.
        (elu.causal(), [2, 16, 24], vec![Initial, Final]),
        (elu, [2, 16, 24], vec![Final]),
        (elu.causal(), [2, 16, 24], vec![Decay(true, false, uniform(-0.5, 0.0))]),
        (
            LinearAttention::scaled(1.0).feature_map(FeatureMap::Relu).normalize(1e-15),
            [2, 32, 32],
            vec![Filled(Fill::Normal(1.0))],
        ),
    ]
}

impl Verified for LinearAttention {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        use Extra::{Beta, Decay, Filled, Final, Heads, Initial, Keys, Unit};
        let mut all = Vec::new();
        let mut add = |op: Self, sizes: Sizes, lay: usize, extras: &[Extra]| {
            all.push(case(op, dtype, sizes, Lay::ALL[lay % Lay::ALL.len()], extras));
        };
        for (i, (op, [h, d, dv], extras)) in models().into_iter().enumerate() {
            add(op, [2, h, 37, d, dv], i, &extras);
            // Decoding: one token more.
            add(op, [1, h, 1, d, dv], i + 1, &extras);
        }
        let causal = Self::new(16).causal();
        let both = Self::scaled(0.5);
        // Around chunks of 8, 16 and 32 tokens.
        let uniform = Fill::Uniform;
        let gated =
            [Unit, Decay(false, false, uniform(-0.5, 0.0)), Beta(false, uniform(0.0, 1.0)), Initial, Final];
        for (i, n) in [7, 8, 9, 16, 17, 32, 33, 65].into_iter().enumerate() {
            add(causal, [1, 1, n, 16, 24], i, &gated);
            add(causal, [1, 2, n, 16, 24], i + 1, &[Decay(true, true, uniform(-0.3, 0.0))]);
            add(both, [1, 1, n, 16, 24], i + 2, &[]);
        }
        // Every layout, in order and not.
        for lay in 0..Lay::ALL.len() {
            add(causal, [2, 2, 19, 16, 16], lay, &[Final]);
            add(both, [2, 2, 19, 16, 16], lay, &[Initial, Final]);
        }
        // Feature maps and normalizers.
        for map in FeatureMap::ALL {
            add(causal.feature_map(map), [1, 2, 18, 16, 24], 1, &[]);
            add(both.feature_map(map), [1, 2, 18, 16, 24], 2, &[]);
        }
        let elu = both.feature_map(FeatureMap::EluPlusOne).normalize(0.0);
        let positive = Filled(uniform(0.1, 2.0));
        add(both.normalize(1e-3), [1, 2, 18, 16, 24], 3, std::slice::from_ref(&positive));
        add(causal.normalize(1e-3), [1, 2, 18, 16, 24], 4, &[positive, Final]);
        add(elu, [1, 2, 18, 16, 24], 0, &[Filled(Fill::Normal(6.0))]);
        // Columns of several tasks and blocks, which share one normalizer.
        add(elu.causal(), [1, 2, 18, 16, 70], 1, &[Initial, Final]);
        add(elu, [1, 1, 18, 16, 70], 2, &[Initial, Final]);
        add(causal, [1, 1, 18, 16, 70], 3, &gated);
        // The heads that most models have.
        add(causal, [1, 1, 18, 64, 64], 0, &gated);
        // Heads of several slices of channels, and of odd sizes.
        for (i, (d, dv)) in [(1, 1), (3, 5), (40, 33), (65, 8), (130, 9), (256, 17)].into_iter().enumerate() {
            add(causal, [1, 1, 19, d, dv], i, &[Decay(false, true, uniform(-0.5, 0.0)), Final]);
            add(
                causal,
                [1, 1, 19, d, dv],
                i + 1,
                &[Unit, Decay(true, true, uniform(-0.5, 0.0)), Beta(true, uniform(0.0, 1.0)), Initial, Final],
            );
            add(elu, [1, 1, 11, d, dv], i + 2, &[Keys(19), Final]);
        }
        // A head that only the CPU takes.
        add(causal, [1, 1, 5, 300, 8], 0, &[Unit, Beta(true, uniform(0.0, 1.0))]);
        // Shared heads: of keys and values, of values alone, of queries.
        for heads in [[6, 2, 2], [6, 1, 1], [6, 6, 3], [2, 6, 6], [1, 3, 6]] {
            add(
                causal,
                [2, 6, 9, 16, 8],
                1,
                &[Heads(heads), Decay(false, true, uniform(-1.0, 0.0)), Initial, Final],
            );
        }
        add(both, [2, 6, 9, 16, 8], 0, &[Heads([6, 2, 2]), Keys(21), Final]);
        // Decays that erase, and that do nothing.
        let extreme = Fill::Values(vec![-0.0, -1e4, -0.5, 0.0, -80.0, -20.0, -1e-3]);
        for per_channel in [false, true] {
            add(causal, [1, 2, 40, 16, 8], 0, &[Decay(per_channel, true, extreme.clone()), Initial, Final]);
            add(
                causal,
                [1, 2, 40, 16, 8],
                1,
                &[
                    Unit,
                    Decay(per_channel, true, extreme.clone()),
                    Beta(true, uniform(0.0, 1.0)),
                    Initial,
                    Final,
                ],
            );
        }
        // Betas that write nothing, and all; keys that are not of length 1; large numbers.
        for beta in [Fill::Constant(0.0), Fill::Constant(1.0), Fill::Values(vec![0.0, 1.0, 0.0, 2.0, -0.5])] {
            add(causal, [1, 2, 20, 16, 8], 0, &[Unit, Beta(false, beta), Initial, Final]);
        }
        add(causal, [1, 2, 20, 16, 8], 1, &[Filled(Fill::Normal(0.3)), Beta(true, uniform(0.0, 1.0)), Final]);
        add(causal, [1, 2, 9, 16, 8], 1, &[Filled(Fill::Normal(1.0)), Beta(true, uniform(0.0, 1.0)), Final]);
        for deviation in [1e-4, 100.0] {
            let scale = 1e-3f32;
            add(
                Self::scaled(scale).causal(),
                [1, 2, 20, 16, 8],
                2,
                &[Filled(Fill::Normal(deviation)), Final],
            );
        }
        add(Self::scaled(0.0).causal(), [1, 2, 20, 16, 8], 2, &[Final]);
        add(Self::scaled(-2.0), [1, 2, 20, 16, 8], 3, &[Keys(3)]);
        // More blocks than a small grid has along an axis.
        add(causal, [4, 16, 2, 16, 8], 1, &[]);
        // One block more than there are states, whose results would lie inside of the operand.
        add(causal, [1, 53, 2, 16, 8], 7, &[]);
        // Nothing: no batch, heads, tokens, keys, channels, columns; and then states alone.
        for sizes in [[0, 2, 9, 16, 8], [1, 0, 9, 16, 8], [1, 2, 0, 16, 8], [1, 2, 9, 0, 8], [1, 2, 9, 16, 0]]
        {
            add(causal, sizes, 0, &[]);
            add(both, sizes, 0, &[Initial, Final]);
        }
        for sizes in [[1, 2, 0, 16, 8], [1, 2, 9, 16, 0]] {
            add(elu.causal(), sizes, 0, &[Initial, Final]);
            add(causal, sizes, 1, &gated);
        }
        add(both.normalize(1.0), [1, 2, 9, 16, 8], 0, &[Keys(0), Final]);
        add(both, [1, 2, 9, 16, 8], 0, &[Keys(0), Initial, Final]);
        all
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        use Extra::{Beta, Decay, Filled, Final, Heads, Initial, Keys, Retention, Unit};
        let of = |rng: &mut ChaCha8Rng, list: &[usize]| list[rng.random_range(0..list.len())];
        let h = of(rng, &[1, 2, 4, 6]);
        let (d, dv) = (of(rng, &[1, 8, 16, 20, 33, 64, 72]), of(rng, &[1, 7, 8, 24, 40]));
        let sizes = [rng.random_range(1..3), h, rng.random_range(0..45), d, dv];
        let mut op = Self::scaled(of(rng, &[1, 2, 3]) as f32 * 0.5);
        let causal = rng.random();
        op.causal = causal;
        let mut extras = Vec::new();
        let delta = causal && rng.random();
        // Under the delta rule, keys that a feature map makes long overflow within some tokens.
        let map = FeatureMap::ALL[rng.random_range(0..if delta { 2 } else { 3 })];
        op.feature_map = map;
        if map == FeatureMap::EluPlusOne && !delta && rng.random() {
            op.normalize = Some(1e-3);
        }
        let divisor = |rng: &mut ChaCha8Rng, whole: usize| {
            let all: Vec<usize> = (1..=whole).filter(|n| whole.is_multiple_of(*n)).collect();
            all[rng.random_range(0..all.len())]
        };
        if rng.random() {
            let states = divisor(rng, h);
            let fewer = divisor(rng, states);
            let [k, v] = if rng.random() { [states, fewer] } else { [fewer, states] };
            extras.push(Heads([divisor(rng, h), k, v]));
        }
        if !causal && rng.random() {
            extras.push(Keys(rng.random_range(1..40)));
        }
        if delta {
            extras.push(if rng.random() { Unit } else { Filled(Fill::Normal(0.5 / (d as f32).sqrt())) });
            extras.push(Beta(rng.random(), Fill::Uniform(0.0, 1.5)));
        }
        if causal && rng.random() {
            extras.push(match rng.random_range(0..3) {
                0 => Retention,
                _ => Decay(rng.random(), rng.random(), Fill::Uniform(-2.0, 0.0)),
            });
        }
        extras.extend(rng.random::<bool>().then_some(Initial));
        extras.extend(rng.random::<bool>().then_some(Final));
        case(op, dtype, sizes, Lay::ALL[rng.random_range(0..Lay::ALL.len())], &extras)
    }

    fn reference(&self, args: &LinearAttentionArgs<Dense, ()>) -> Vec<Expected> {
        let [out, last] = reference::linear_attention::linear_attention(self, args);
        if args.final_state.is_some() { vec![out, last] } else { vec![out] }
    }
}
