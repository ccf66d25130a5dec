//! The contract between an op, the targets that run it and the harness that verifies it.
//!
//! A call is read in three files: `src/ops/<op>.rs` checks the arguments and plans the launch,
//! `src/target/<target>.rs` finds or compiles the kernel and launches it, `kernels/<op>.cu` or
//! `shaders/<op>.wgsl` is the kernel. On the CPU the op's own `src/cpu/<op>.rs` runs.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::target::cpu::Cpu;
use crate::view::{Memory, View};
use arrayvec::ArrayVec;
use std::fmt::Debug;

/// The most operands an op may have.
pub const MAX_OPERANDS: usize = 16;

/// Element indices are 32-bit in every kernel: no operand may reach further than this.
pub const MAX_ELEMENTS: u64 = i32::MAX as u64;

/// One kind of kernel: options by value, operands over any memory.
///
/// # Safety
/// Given arguments that [`prepare`] accepted, every kernel touches no element outside its operands' extents,
/// writes each output element from one thread at a time, and ends: targets launch kernels without bounds
/// checks of their own.
pub unsafe trait Op: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// The stem of its files on every face.
    const NAME: &'static str;
    /// The CUDA C++ kernel file.
    const CUDA: &'static str;
    /// The WGSL kernel file.
    const WGSL: &'static str;

    /// The operands, as named fields, inputs over memory `I` and outputs over memory `O`.
    type Args<I, O>: Operands<I, O>;
    /// The scalars that change per call; passed to the kernel by value.
    type Params: Scalars;

    /// Validates shapes, dtypes and options, and derives the kernel's scalars.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the operand or option at fault.
    fn check<I, O>(&self, args: &Self::Args<I, O>) -> Result<Self::Params>;

    /// Chooses kernel, constants and grid. Pure: the same inputs give the same plan, with no device.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Limit`] when the device cannot run this call.
    fn plan(&self, params: &Self::Params, signature: &Signature, caps: &Caps) -> Result<Plan>;

    /// Floating-point operations and compulsory traffic: what the roofline is drawn from.
    fn cost(&self, params: &Self::Params, signature: &Signature) -> Cost;

    /// The CPU kernel.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::Driver`] when the memory that it needs beside the operands is not to be had; nothing
    /// is then written.
    ///
    /// # Safety
    /// `params` are what [`prepare`] gave for this op and these arguments.
    unsafe fn cpu(&self, params: &Self::Params, args: Self::Args<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()>;

    /// The same operands over other memory. Written by the `operands!` macro.
    ///
    /// # Errors
    /// The first error of `input` or `output`.
    fn map<I, O, J, P>(
        args: Self::Args<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>>,
    ) -> Result<Self::Args<J, P>>;

    /// The axis of an operand along which independent samples lie, if it has one: a target cuts there
    /// when a call is too large for one launch. `None` for operands that all samples share.
    fn batch_axis<I, O>(&self, args: &Self::Args<I, O>, operand: &str) -> Option<usize> {
        let _ = (args, operand);
        None
    }

    /// The op for the samples from `first` on, when a target cuts the batch. Only ops that number their
    /// samples (noise streams) differ.
    #[must_use]
    fn starting_at(&self, first: usize) -> Self {
        let _ = first;
        *self
    }
}

/// The operands of an op, seen one by one.
pub trait Operands<I, O> {
    /// Every operand in binding order, absent optional ones included; outputs come last.
    fn each(&self) -> ArrayVec<Operand<'_, I, O>, MAX_OPERANDS>;
    /// A copy, where the memory handles can be copied.
    fn duplicate(&self) -> Self
    where
        I: Clone,
        O: Clone;
    /// The operands from lists in binding order, as adapters for engines have them. Those that a list ends before are
    /// absent. `None` when one is missing that may not be, or one is left over.
    fn in_order(
        inputs: impl IntoIterator<Item = Option<View<I>>>,
        outputs: impl IntoIterator<Item = View<O>>,
    ) -> Option<Self>
    where
        Self: Sized;
}

/// One operand of a call.
pub struct Operand<'a, I, O> {
    /// Its field name, which is also its name in the kernels.
    pub name: &'static str,
    /// Its view.
    pub side: Side<'a, I, O>,
}

/// Whether an operand is read or written.
pub enum Side<'a, I, O> {
    /// Read; `None` when optional and not given.
    Input(Option<&'a View<I>>),
    /// Written; `None` when optional and not asked for.
    Output(Option<&'a View<O>>),
}

/// Declares the operands of an op: field kinds are `input`, `optional` (an input that may be absent),
/// `output` and `extra` (an output that may be absent). Outputs come last. This one declaration gives the argument struct, its bindings and
/// [`Op::map`].
#[macro_export]
#[doc(hidden)]
macro_rules! operands {
    (
        $(#[$doc:meta])*
        pub struct $Args:ident { $( $(#[$field_doc:meta])* $field:ident: $kind:ident, )* }
    ) => {
        $(#[$doc])*
        pub struct $Args<I, O> {
            $( $(#[$field_doc])* pub $field: $crate::operands!(@type $kind I O), )*
        }

        // Derives refuse fields whose type is a macro call.
        impl<I: Clone, O: Clone> Clone for $Args<I, O> {
            fn clone(&self) -> Self {
                Self { $( $field: self.$field.clone(), )* }
            }
        }

        impl<I: std::fmt::Debug, O: std::fmt::Debug> std::fmt::Debug for $Args<I, O> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($Args))$( .field(stringify!($field), &self.$field) )*.finish()
            }
        }

        impl<I, O> $crate::op::Operands<I, O> for $Args<I, O> {
            fn each(&self) -> arrayvec::ArrayVec<$crate::op::Operand<'_, I, O>, { $crate::op::MAX_OPERANDS }> {
                let mut all = arrayvec::ArrayVec::new();
                $( all.push($crate::op::Operand {
                    name: stringify!($field),
                    side: $crate::operands!(@side $kind self.$field),
                }); )*
                all
            }
            fn duplicate(&self) -> Self
            where
                I: Clone,
                O: Clone,
            {
                self.clone()
            }
            fn in_order(
                inputs: impl IntoIterator<Item = Option<$crate::View<I>>>,
                outputs: impl IntoIterator<Item = $crate::View<O>>,
            ) -> Option<Self> {
                let (mut inputs, mut outputs) = (inputs.into_iter(), outputs.into_iter());
                let args = Self { $( $field: $crate::operands!(@take $kind inputs, outputs), )* };
                (inputs.next().is_none() && outputs.next().is_none()).then_some(args)
            }
        }

        impl<I, O> $Args<I, O> {
            /// The same operands over other memory.
            pub(crate) fn try_map<J, P>(
                self,
                mut input: impl FnMut(&'static str, $crate::View<I>) -> $crate::Result<$crate::View<J>>,
                mut output: impl FnMut(&'static str, $crate::View<O>) -> $crate::Result<$crate::View<P>>,
            ) -> $crate::Result<$Args<J, P>> {
                Ok($Args {
                    $( $field: $crate::operands!(@map $kind self.$field, stringify!($field), input, output), )*
                })
            }
        }
    };
    (@type input $I:ident $O:ident) => { $crate::View<$I> };
    (@type optional $I:ident $O:ident) => { Option<$crate::View<$I>> };
    (@type output $I:ident $O:ident) => { $crate::View<$O> };
    (@type extra $I:ident $O:ident) => { Option<$crate::View<$O>> };
    (@side input $view:expr) => { $crate::op::Side::Input(Some(&$view)) };
    (@side optional $view:expr) => { $crate::op::Side::Input($view.as_ref()) };
    (@side output $view:expr) => { $crate::op::Side::Output(Some(&$view)) };
    (@side extra $view:expr) => { $crate::op::Side::Output($view.as_ref()) };
    (@take input $inputs:ident, $outputs:ident) => { $inputs.next()?? };
    (@take optional $inputs:ident, $outputs:ident) => { $inputs.next().flatten() };
    (@take output $inputs:ident, $outputs:ident) => { $outputs.next()? };
    (@take extra $inputs:ident, $outputs:ident) => { $outputs.next() };
    (@map input $view:expr, $name:expr, $input:ident, $output:ident) => { $input($name, $view)? };
    (@map optional $view:expr, $name:expr, $input:ident, $output:ident) => {
        $view.map(|v| $input($name, v)).transpose()?
    };
    (@map output $view:expr, $name:expr, $input:ident, $output:ident) => { $output($name, $view)? };
    (@map extra $view:expr, $name:expr, $input:ident, $output:ident) => {
        $view.map(|v| $output($name, v)).transpose()?
    };
}

/// The 4-byte scalars of a kernel. Written by the `params!` macro.
pub trait Scalars: bytemuck::Pod + Debug + PartialEq + Send + Sync {
    /// Name and type of each field, in memory order.
    const FIELDS: &'static [(&'static str, Scalar)];
}

/// The type of one field of [`Scalars`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// `unsigned` in CUDA, `u32` in WGSL.
    U32,
    /// `float` in CUDA, `f32` in WGSL.
    F32,
}

/// Declares the scalars of an op; this one declaration becomes the struct `Params` of both kernel
/// languages.
#[macro_export]
#[doc(hidden)]
macro_rules! params {
    (
        $(#[$doc:meta])*
        pub struct $Params:ident { $( $(#[$field_doc:meta])* $field:ident: $ty:ident, )* }
    ) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $Params { $( $(#[$field_doc])* pub $field: $ty, )* }

        impl $crate::op::Scalars for $Params {
            const FIELDS: &'static [(&'static str, $crate::op::Scalar)] =
                &[ $( (stringify!($field), $crate::params!(@ $ty)), )* ];
        }
    };
    (@ u32) => { $crate::op::Scalar::U32 };
    (@ f32) => { $crate::op::Scalar::F32 };
}

/// What the kernel's source depends on besides its constants: dtype and presence of each operand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Signature(ArrayVec<Slot, MAX_OPERANDS>);

/// One operand as the prelude generator sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// Its name.
    pub name: &'static str,
    /// Its dtype; `None` when it is absent.
    pub dtype: Option<Dtype>,
    /// Whether it is written.
    pub output: bool,
    /// The largest power of two, up to 16, that divides the address of its first element, in bytes.
    pub align: u32,
}

impl Signature {
    /// A signature from slots, for planning without memory.
    pub fn new(slots: impl IntoIterator<Item = Slot>) -> Self {
        Self(slots.into_iter().collect())
    }
    /// The operands in binding order.
    pub fn slots(&self) -> &[Slot] {
        &self.0
    }
    /// The slot called `name`.
    pub fn slot(&self, name: &str) -> Option<&Slot> {
        self.0.iter().find(|s| s.name == name)
    }
    /// The same signature with every alignment forgotten: what a compiled kernel depends on.
    #[must_use]
    pub fn without_alignment(mut self) -> Self {
        for slot in &mut self.0 {
            slot.align = 16;
        }
        self
    }
    /// Whether the operand called `name` was given.
    pub fn has(&self, name: &str) -> bool {
        self.slot(name).is_some_and(|s| s.dtype.is_some())
    }
    /// The dtype of the operand called `name`; f32 when it is absent.
    pub fn dtype(&self, name: &str) -> Dtype {
        self.slot(name).and_then(|s| s.dtype).unwrap_or(Dtype::F32)
    }
    /// The alignment in bytes, up to 16, of the operand called `name`; 16 when it is absent.
    pub fn align(&self, name: &str) -> u32 {
        self.slot(name).filter(|s| s.dtype.is_some()).map_or(16, |s| s.align)
    }
}

/// Compile-time constants of a kernel: tile sizes, switches. They select code; sizes that change from
/// call to call belong in the params.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Consts(ArrayVec<(&'static str, u32), 24>);

impl Consts {
    /// No constants.
    pub fn new() -> Self {
        Self::default()
    }
    /// With one more constant.
    #[must_use]
    pub fn set(mut self, name: &'static str, value: impl Into<u32>) -> Self {
        self.0.push((name, value.into()));
        self
    }
    /// All of them, in the order they were set.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        self.0.iter().copied()
    }
    /// The value of one of them.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The kernel's name in its file.
    pub entry: &'static str,
    /// The constants it is compiled with.
    pub consts: Consts,
    /// Blocks (workgroups) along x, y, z. A zero means that there is nothing to do.
    pub grid: [u32; 3],
    /// Threads (invocations) of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes (CUDA); workgroup memory it declares (WGSL).
    pub shared_bytes: u32,
}

/// Spreads `blocks` over x and y, wasting as few as it can: the kernel takes `x + y * grid_x` as its block
/// number, in 32 bits, and leaves when that is past the last.
///
/// # Errors
/// [`Error::Limit`] when even both together are too few.
pub fn fold_grid(op: &'static str, blocks: u64, caps: &Caps) -> Result<[u32; 3]> {
    let [along_x, along_y, _] = caps.max_grid.map(u64::from);
    let limit = (along_x * along_y).min(u32::MAX.into());
    if blocks > limit {
        return Err(Error::Limit {
            op,
            arg: "grid",
            what: "number of blocks",
            got: blocks,
            limit,
            target: caps.name.clone(),
        });
    }
    let y = blocks.div_ceil(along_x).max(1);
    Ok([blocks.div_ceil(y) as u32, y as u32, 1])
}

/// Which language a target's kernels are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// CUDA C++ for this architecture: 75, 80, .., 90, 100, 120.
    Cuda {
        /// Major version times ten plus minor.
        arch: u32,
    },
    /// WGSL.
    Wgsl {
        /// Whether the adapter has f16 arithmetic and storage (`SHADER_F16`).
        f16: bool,
        /// Whether the adapter has subgroup operations.
        subgroups: bool,
        /// Bytes of params that can be passed as immediates (push constants); larger ones, or all where
        /// this is 0, come through a uniform buffer.
        immediates: u32,
    },
}

/// What a device can do, as far as planning depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Caps {
    /// The device in words, for messages.
    pub name: String,
    /// The language of its kernels.
    pub language: Language,
    /// Shared (workgroup) memory of a block in bytes.
    pub shared_bytes: u32,
    /// Threads of a block.
    pub max_threads: u32,
    /// Threads of a block along each axis.
    pub max_block: [u32; 3],
    /// Blocks along each axis.
    pub max_grid: [u32; 3],
    /// Smallest and largest width of a subgroup (warp).
    pub subgroup: [u32; 2],
    /// Multiprocessors, each of which runs a few blocks at a time: how large tiles may be before some have none. Where
    /// it is not known, those of a small device.
    pub multiprocessors: u32,
    /// Operands that one launch may bind.
    pub max_operands: u32,
    /// Bytes of one operand that one launch may reach.
    pub max_binding: u64,
}

/// Work and compulsory traffic of one call.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations: a multiply-add counts 2.
    pub flops: f64,
    /// Bytes that must move between memory and the device: each operand once.
    pub bytes: f64,
}

/// Validates a call before anything is launched: bounds, alignment, overlap, then the op's own check.
/// Gives the kernel's scalars and the signature to plan with.
///
/// # Errors
/// [`Error::Argument`] or [`Error::Limit`], naming the operand.
pub fn prepare<T: Op, I: Memory, O: Memory>(op: &T, args: &T::Args<I, O>) -> Result<(T::Params, Signature)> {
    let all = args.each();
    let mut signature = ArrayVec::new();
    for operand in &all {
        let slot = match &operand.side {
            Side::Input(None) => Slot { name: operand.name, dtype: None, output: false, align: 16 },
            Side::Output(None) => Slot { name: operand.name, dtype: None, output: true, align: 16 },
            Side::Input(Some(view)) => in_bounds(T::NAME, operand.name, view, false)?,
            Side::Output(Some(view)) => {
                distinct(T::NAME, operand.name, view)?;
                in_bounds(T::NAME, operand.name, view, true)?
            }
        };
        signature.push(slot);
    }
    no_overlap::<T, I, O>(&all)?;
    Ok((op.check(args)?, Signature(signature)))
}

/// The plan of a call that [`prepare`] accepted, which the device can also bind.
///
/// # Errors
/// As [`Op::plan`]; [`Error::Limit`] when there are more operands than the device binds.
pub fn plan<T: Op>(op: &T, params: &T::Params, signature: &Signature, caps: &Caps) -> Result<Plan> {
    let plan = op.plan(params, signature, caps)?;
    let given = signature.slots().iter().filter(|s| s.dtype.is_some()).count();
    if given as u64 > u64::from(caps.max_operands) && !plan.grid.contains(&0) {
        return Err(Error::Limit {
            op: T::NAME,
            arg: "operands",
            what: "number of bound buffers",
            got: given as u64,
            limit: caps.max_operands.into(),
            target: caps.name.clone(),
        });
    }
    Ok(plan)
}

/// The view lies inside its memory, aligned to its dtype.
fn in_bounds<M: Memory>(op: &'static str, arg: &'static str, view: &View<M>, output: bool) -> Result<Slot> {
    let size = view.dtype().size() as u64;
    let bytes = view.memory().byte_len();
    let fits = || format!("elements inside the {} of its memory", bytes / size);
    let extent = view
        .extent()
        .ok_or_else(|| Error::argument(op, arg, fits(), format!("{}, which overflows", view.describe())))?;
    if extent.end as u64 > bytes / size && !view.is_empty() {
        return Err(Error::argument(op, arg, fits(), view.describe()));
    }
    let reach = extent.len() as u64;
    if reach > MAX_ELEMENTS {
        let (what, limit, target) = ("reach in elements", MAX_ELEMENTS, "every target".into());
        return Err(Error::Limit { op, arg, what, got: reach, limit, target });
    }
    let (_, base) = view.memory().place();
    if !view.is_empty() && base % size != 0 {
        let wanted = format!("memory aligned to the {size} bytes of {}", view.dtype());
        return Err(Error::argument(op, arg, wanted, format!("address {base:#x}")));
    }
    let first = base.wrapping_add((extent.start as u64).wrapping_mul(size));
    let align = 1 << first.trailing_zeros().min(4);
    Ok(Slot { name: arg, dtype: Some(view.dtype()), output, align })
}

/// No two index tuples of an output name the same element: sorted by stride, each axis steps over all
/// that lie within the smaller ones.
fn distinct<M>(op: &'static str, arg: &'static str, view: &View<M>) -> Result<()> {
    let mut axes: ArrayVec<(usize, usize), { crate::view::MAX_RANK }> =
        view.strides().iter().copied().zip(view.shape().iter().copied()).filter(|a| a.1 > 1).collect();
    axes.sort_unstable();
    let mut reach = 0usize;
    for (stride, size) in axes {
        if stride <= reach && !view.is_empty() {
            let wanted = "strides under which no two elements coincide";
            return Err(Error::argument(op, arg, wanted, view.describe()));
        }
        reach = reach.saturating_add(stride.saturating_mul(size - 1));
    }
    Ok(())
}

/// No output meets an input or another output. Ranges from first to last element are compared, so
/// interleaved views of one memory count as overlapping.
fn no_overlap<T: Op, I: Memory, O: Memory>(all: &[Operand<'_, I, O>]) -> Result<()> {
    fn range<M: Memory>(view: &View<M>) -> Option<(u64, u64, u64)> {
        let (space, base) = view.memory().place();
        let extent = view.extent().filter(|e| !e.is_empty())?;
        let size = view.dtype().size() as u64;
        Some((space, base + extent.start as u64 * size, base + extent.end as u64 * size))
    }
    let ranges: ArrayVec<_, MAX_OPERANDS> = all
        .iter()
        .map(|o| match &o.side {
            Side::Input(v) => (o.name, false, v.and_then(|v| range(v))),
            Side::Output(v) => (o.name, true, v.and_then(|v| range(v))),
        })
        .collect();
    for (i, &(out, is_output, a)) in ranges.iter().enumerate() {
        let Some((space, start, end)) = a.filter(|_| is_output) else { continue };
        for (j, &(other, _, b)) in ranges.iter().enumerate() {
            let Some(b) = b.filter(|_| i != j) else { continue };
            if space == b.0 && start < b.2 && b.1 < end {
                let wanted = format!("memory apart from `{other}`");
                let got = format!("bytes {start:#x}..{end:#x}, which meet {:#x}..{:#x}", b.1, b.2);
                return Err(Error::argument(T::NAME, out, wanted, got));
            }
        }
    }
    Ok(())
}

/// Small checks that ops share.
pub(crate) mod check {
    use super::{Error, Operands, Result, Side, View};
    use crate::dtype::Dtype;

    /// The view has exactly this shape.
    pub(crate) fn shape<M>(
        op: &'static str,
        arg: &'static str,
        view: &View<M>,
        want: &[usize],
    ) -> Result<()> {
        if view.shape() == want {
            return Ok(());
        }
        Err(Error::argument(op, arg, format!("shape {want:?}"), format!("{:?}", view.shape())))
    }

    /// The view has this rank, with its axes' names for the message: `["n", "c", "h", "w"]`.
    pub(crate) fn rank<M>(op: &'static str, arg: &'static str, view: &View<M>, axes: &[&str]) -> Result<()> {
        if view.rank() == axes.len() {
            return Ok(());
        }
        let wanted = format!("{} axes [{}]", axes.len(), axes.join(", "));
        Err(Error::argument(op, arg, wanted, format!("{:?}", view.shape())))
    }

    /// The view has one of these dtypes.
    pub(crate) fn dtype<M>(op: &'static str, arg: &'static str, view: &View<M>, of: &[Dtype]) -> Result<()> {
        if of.contains(&view.dtype()) {
            return Ok(());
        }
        let mut wanted: Vec<&str> = of.iter().map(|d| d.name()).collect();
        wanted.dedup();
        Err(Error::argument(op, arg, wanted.join(" or "), view.dtype()))
    }

    /// Every operand has the same dtype, one of floats, except those named in `but`.
    pub(crate) fn one_dtype<I, O>(
        op: &'static str,
        args: &impl Operands<I, O>,
        but: &[&str],
    ) -> Result<Dtype> {
        let all = args.each();
        let typed = all.iter().filter(|o| !but.contains(&o.name)).filter_map(|o| {
            let dtype = match &o.side {
                Side::Input(v) => v.as_ref()?.dtype(),
                Side::Output(v) => v.as_ref()?.dtype(),
            };
            Some((o.name, dtype))
        });
        let mut first = None;
        for (name, dtype) in typed {
            match first {
                None if !dtype.is_float() => {
                    return Err(Error::argument(op, name, "f32, f16 or bf16", dtype));
                }
                None => first = Some((name, dtype)),
                Some((_, d)) if d == dtype => {}
                Some((n, d)) => {
                    return Err(Error::argument(op, name, format!("{d}, the dtype of `{n}`"), dtype));
                }
            }
        }
        Ok(first.map_or(Dtype::F32, |f| f.1))
    }

    /// A size or stride as the 32-bit scalar that kernels take.
    pub(crate) fn scalar(op: &'static str, arg: &'static str, value: usize) -> Result<u32> {
        u32::try_from(value).map_err(|_| Error::argument(op, arg, "a size or stride below 2^32", value))
    }
}
