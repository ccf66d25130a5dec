//! Butcher tableaus, checked when constructed.

use crate::error::{Error, Result};
use arrayvec::ArrayVec;

/// The most stages a tableau may have: with the state they fill the buffers of one combination.
pub const MAX_STAGES: usize = 7;

/// How far the order conditions may miss: coefficients are rounded to f64 once each.
const TOLERANCE: f64 = 1e-12;

type Row = ArrayVec<f64, MAX_STAGES>;

/// An explicit Runge-Kutta method:
/// `k_i = f(t + c_i h, x + h sum_j<i a_ij k_j)`, `x' = x + h sum_i b_i k_i`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tableau {
    a: ArrayVec<Row, MAX_STAGES>,
    b: Row,
    c: Row,
    order: usize,
}

impl Tableau {
    /// A method of `order` 1 to 4 from the rows of `a` below its diagonal (the first is empty) and the
    /// weights `b`. The nodes `c` are the row sums of `a`.
    ///
    /// # Errors
    /// [`Error::Argument`] when the rows are not a lower triangle, there are no stages or more than
    /// [`MAX_STAGES`], or a condition of the claimed order does not hold (Hairer, Norsett and Wanner,
    /// *Solving Ordinary Differential Equations I*, II.1, table of order conditions).
    pub fn new(a: &[&[f64]], b: &[f64], order: usize) -> Result<Self> {
        let stages = b.len();
        if stages == 0 || stages > MAX_STAGES {
            return Err(Error::argument("solver", "b", format!("1 to {MAX_STAGES} stages"), stages));
        }
        if a.len() != stages || a.iter().enumerate().any(|(i, row)| row.len() != i) {
            let got: Vec<usize> = a.iter().map(|row| row.len()).collect();
            let wanted = format!("{stages} rows of 0, 1, .. coefficients");
            return Err(Error::argument("solver", "a", wanted, format!("rows of {got:?}")));
        }
        if !(1..=4).contains(&order) {
            return Err(Error::argument("solver", "order", "1 to 4", order));
        }
        let tableau = Self {
            a: a.iter().map(|row| row.iter().copied().collect()).collect(),
            b: b.iter().copied().collect(),
            c: a.iter().map(|row| row.iter().sum()).collect(),
            order,
        };
        for (of, condition, got, wanted) in tableau.conditions() {
            // A NaN does not hold.
            let holds = (got - wanted).abs() <= TOLERANCE;
            if of <= order && !holds {
                let wanted = format!("{condition} = {wanted}, a condition of order {of}");
                return Err(Error::argument("solver", "b", wanted, got));
            }
        }
        Ok(tableau)
    }

    /// The eight conditions up to order 4: order, formula, left side, right side.
    fn conditions(&self) -> [(usize, &'static str, f64, f64); 8] {
        let c = &self.c;
        let sum = |f: &dyn Fn(usize) -> f64| -> f64 { (0..self.b.len()).map(|i| self.b[i] * f(i)).sum() };
        // sum_j a_ij x_j
        let a = |i: usize, x: &dyn Fn(usize) -> f64| -> f64 { (0..i).map(|j| self.a[i][j] * x(j)).sum() };
        [
            (1, "sum b", sum(&|_| 1.0), 1.0),
            (2, "sum b c", sum(&|i| c[i]), 1.0 / 2.0),
            (3, "sum b c^2", sum(&|i| c[i].powi(2)), 1.0 / 3.0),
            (3, "sum b a c", sum(&|i| a(i, &|j| c[j])), 1.0 / 6.0),
            (4, "sum b c^3", sum(&|i| c[i].powi(3)), 1.0 / 4.0),
            (4, "sum b c a c", sum(&|i| c[i] * a(i, &|j| c[j])), 1.0 / 8.0),
            (4, "sum b a c^2", sum(&|i| a(i, &|j| c[j].powi(2))), 1.0 / 12.0),
            (4, "sum b a a c", sum(&|i| a(i, &|j| a(j, &|k| c[k]))), 1.0 / 24.0),
        ]
    }

    /// Evaluations of the velocity a step.
    pub fn stages(&self) -> usize {
        self.b.len()
    }
    /// The order it was checked for.
    pub fn order(&self) -> usize {
        self.order
    }
    /// Coefficients of the earlier slopes in the input of stage `i`.
    pub fn a(&self, i: usize) -> &[f64] {
        &self.a[i]
    }
    /// Weights of the slopes in the result.
    pub fn b(&self) -> &[f64] {
        &self.b
    }
    /// Where in the step each stage is, 0 at its start and 1 at its end.
    pub fn c(&self) -> &[f64] {
        &self.c
    }
}

/// The methods that have a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Euler's: one evaluation, order 1.
    Euler,
    /// The explicit midpoint rule: two evaluations, order 2.
    Midpoint,
    /// The explicit trapezoidal rule: two evaluations, the second at the end of the step, order 2.
    Heun,
    /// The classical method of Runge and Kutta: four evaluations, order 4.
    Rk4,
}

impl Method {
    /// Every method, from the fewest evaluations on.
    pub const ALL: [Self; 4] = [Self::Euler, Self::Midpoint, Self::Heun, Self::Rk4];

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Euler => "euler",
            Self::Midpoint => "midpoint",
            Self::Heun => "heun",
            Self::Rk4 => "rk4",
        }
    }

    /// Its coefficients.
    pub fn tableau(self) -> Tableau {
        let checked = match self {
            Self::Euler => Tableau::new(&[&[]], &[1.0], 1),
            Self::Midpoint => Tableau::new(&[&[], &[0.5]], &[0.0, 1.0], 2),
            Self::Heun => Tableau::new(&[&[], &[1.0]], &[0.5, 0.5], 2),
            Self::Rk4 => Tableau::new(
                &[&[], &[0.5], &[0.0, 0.5], &[0.0, 0.0, 1.0]],
                &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0],
                4,
            ),
        };
        checked.expect("the test of this module constructs every named method")
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Method {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|m| m.name() == s)
            .ok_or_else(|| format!("unknown solver `{s}`: wanted euler, midpoint, heun or rk4"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_methods_hold_their_order_and_no_more() {
        for method in Method::ALL {
            let t = method.tableau();
            let a: Vec<&[f64]> = (0..t.stages()).map(|i| t.a(i)).collect();
            assert!(t.order() == 4 || Tableau::new(&a, t.b(), t.order() + 1).is_err(), "{method}");
            assert_eq!(method.name().parse(), Ok(method));
        }
    }

    #[test]
    fn wrong_tableaus_are_refused() {
        let refused = |a: &[&[f64]], b: &[f64], order| {
            let Err(Error::Argument { op: "solver", arg, .. }) = Tableau::new(a, b, order) else {
                panic!("{a:?} {b:?} of order {order} was accepted");
            };
            arg
        };
        assert_eq!(refused(&[], &[], 1), "b");
        assert_eq!(refused(&[&[] as &[f64]; 8], &[0.125; 8], 1), "b");
        assert_eq!(refused(&[&[], &[]], &[0.5, 0.5], 1), "a");
        assert_eq!(refused(&[&[], &[1.0, 2.0]], &[0.5, 0.5], 1), "a");
        assert_eq!(refused(&[&[]], &[1.0], 0), "order");
        assert_eq!(refused(&[&[]], &[0.9], 1), "b");
        assert_eq!(refused(&[&[]], &[f64::NAN], 1), "b");
        // One wrong digit in the classical method.
        let a: [&[f64]; 4] = [&[], &[0.5], &[0.0, 0.5], &[0.0, 0.1, 0.9]];
        assert_eq!(refused(&a, &[1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0], 4), "b");
    }
}
