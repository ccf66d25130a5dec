//! Mutants of a kernel file: each is the file with one small mistake in it.
//!
//! Works on tokens, for CUDA C++ and WGSL alike. It leans on how our kernels are written: a comparison has
//! spaces round it and template brackets have none, and preprocessor lines stand alone.

use std::fmt;
use std::ops::Range;

/// What kind of mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A barrier is deleted.
    Barrier,
    /// A wait for asynchronous copies, or the end of their group, is deleted.
    Wait,
    /// `<` becomes `<=` and the like: off by one.
    Boundary,
    /// `<` becomes `>=` and the like: the opposite.
    Negation,
    /// An index or element number grows by one.
    Index,
    /// The address that a copy, a load of fragments or a vector access is given is one element further on.
    Address,
    /// A guard no longer guards: an `if`, a `?:`, a `select`, a `min` or `max`.
    Mask,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Barrier, Self::Wait, Self::Boundary, Self::Negation, Self::Index, Self::Address, Self::Mask];

    /// What the report calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier deleted",
            Self::Wait => "wait deleted",
            Self::Boundary => "comparison off by one",
            Self::Negation => "comparison negated",
            Self::Index => "index shifted",
            Self::Address => "address shifted",
            Self::Mask => "mask dropped",
        }
    }
}

/// One change of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mutant {
    pub(crate) kind: Kind,
    /// The bytes that are replaced.
    pub(crate) at: Range<usize>,
    pub(crate) by: String,
}

impl Mutant {
    /// The changed file.
    pub(crate) fn apply(&self, text: &str) -> String {
        format!("{}{}{}", &text[..self.at.start], self.by, &text[self.at.end..])
    }

    /// The number of its line, from 1.
    pub(crate) fn line(&self, text: &str) -> usize {
        text[..self.at.start].matches('\n').count() + 1
    }

    /// Its line after the change, without indentation.
    pub(crate) fn changed_line(&self, text: &str) -> String {
        self.line_with(&self.by, text)
    }

    /// Its line before the change, without indentation.
    pub(crate) fn original_line(&self, text: &str) -> String {
        self.line_with(&text[self.at.clone()], text)
    }

    fn line_with(&self, middle: &str, text: &str) -> String {
        let start = text[..self.at.start].rfind('\n').map_or(0, |i| i + 1);
        let end = text[self.at.end..].find('\n').map_or(text.len(), |i| self.at.end + i);
        let line = format!("{}{middle}{}", &text[start..self.at.start], &text[self.at.end..end]);
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// All mutants of a file, in the order of the text.
pub(crate) fn mutants(text: &str) -> Vec<Mutant> {
    let tokens = tokens(text);
    let file = File { text, tokens: &tokens };
    let mut all = Vec::new();
    for i in 0..tokens.len() {
        file.barriers(i, &mut all);
        file.comparisons(i, &mut all);
        file.indices(i, &mut all);
        file.addresses(i, &mut all);
        file.masks(i, &mut all);
    }
    all.sort_by_key(|m| (m.at.start, m.kind));
    all.dedup();
    all
}

/// Words, numbers and operators; comments and preprocessor lines are left out.
fn tokens(text: &str) -> Vec<Range<usize>> {
    const OPERATORS: [&str; 16] =
        ["<<=", ">>=", "<=", ">=", "==", "!=", "&&", "||", "<<", ">>", "+=", "-=", "*=", "->", "::", "++"];
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let (mut at, mut line_start) = (0, true);
    while at < bytes.len() {
        let rest = &text[at..];
        let first = bytes[at];
        if first == b'\n' {
            line_start = true;
            at += 1;
        } else if first.is_ascii_whitespace() {
            at += 1;
        } else if rest.starts_with("//") || (first == b'#' && line_start) {
            at += rest.find('\n').unwrap_or(rest.len());
        } else {
            line_start = false;
            let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
            let length = if first == b'"' {
                rest[1..].find('"').map_or(rest.len(), |i| i + 2)
            } else if word(first) {
                // A number may have a point in it.
                let number = first.is_ascii_digit();
                rest.bytes().take_while(|&b| word(b) || (number && b == b'.')).count()
            } else {
                let operator = OPERATORS.iter().find(|o| rest.starts_with(**o));
                operator.map_or_else(|| rest.chars().next().map_or(1, char::len_utf8), |o| o.len())
            };
            out.push(at..at + length);
            at += length;
        }
    }
    out
}

struct File<'a> {
    text: &'a str,
    tokens: &'a [Range<usize>],
}

impl<'a> File<'a> {
    /// The text of a token; empty past either end.
    fn token(&self, i: usize) -> &'a str {
        self.tokens.get(i).map_or("", |t| &self.text[t.clone()])
    }

    /// The bracket that closes the one at `open`.
    fn close(&self, open: usize) -> Option<usize> {
        let mut depth = 0;
        for i in open..self.tokens.len() {
            match self.token(i) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(i);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// Where each argument between the brackets `open` and `close` starts and ends, in tokens.
    fn arguments(&self, open: usize, close: usize) -> Vec<Range<usize>> {
        let (mut all, mut start, mut depth) = (Vec::new(), open + 1, 0);
        for i in open + 1..close {
            match self.token(i) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                "," if depth == 0 => {
                    all.push(start..i);
                    start = i + 1;
                }
                _ => {}
            }
        }
        all.push(start..close);
        all
    }

    /// The bytes of some tokens.
    fn span(&self, tokens: Range<usize>) -> Range<usize> {
        self.tokens[tokens.start].start..self.tokens[tokens.end - 1].end
    }

    fn push(&self, all: &mut Vec<Mutant>, kind: Kind, tokens: Range<usize>, by: impl Into<String>) {
        all.push(Mutant { kind, at: self.span(tokens), by: by.into() });
    }

    fn barriers(&self, i: usize, all: &mut Vec<Mutant>) {
        let kind = match self.token(i) {
            "__syncthreads" | "__syncwarp" | "workgroupBarrier" | "storageBarrier" | "subgroupBarrier" => {
                Kind::Barrier
            }
            "cp_async_wait" | "cp_async_commit" => Kind::Wait,
            _ => return,
        };
        // A call is a statement of its own; a definition has a type before the name.
        if !matches!(self.token(i.wrapping_sub(1)), ";" | "{" | "}" | ")" | "") {
            return;
        }
        let Some(end) = (i..self.tokens.len()).find(|&j| self.token(j) == ";") else { return };
        self.push(all, kind, i..end, "");
    }

    fn comparisons(&self, i: usize, all: &mut Vec<Mutant>) {
        let (boundary, negation) = match self.token(i) {
            "<" => (Some("<="), ">="),
            "<=" => (Some("<"), ">"),
            ">" => (Some(">="), "<="),
            ">=" => (Some(">"), "<"),
            "==" => (None, "!="),
            "!=" => (None, "=="),
            _ => return,
        };
        let at = &self.tokens[i];
        let spaced = self.text[..at.start].ends_with(' ') && self.text[at.end..].starts_with(' ');
        if !spaced {
            return;
        }
        if let Some(by) = boundary {
            self.push(all, Kind::Boundary, i..i + 1, by);
        }
        self.push(all, Kind::Negation, i..i + 1, negation);
    }

    fn indices(&self, i: usize, all: &mut Vec<Mutant>) {
        let word = self.token(i);
        let shifted = |tokens: Range<usize>| {
            let inner = self.span(tokens.clone());
            format!("({}) + 1", &self.text[inner])
        };
        if word == "["
            && !self.declares(i)
            && let Some(close) = self.close(i).filter(|&c| c > i + 1)
        {
            self.push(all, Kind::Index, i + 1..close, shifted(i + 1..close));
        }
        // WGSL's accessors of operands: the element's number comes first.
        let accessor = ["load_", "store_", "store2_"].iter().any(|p| word.starts_with(p));
        if accessor
            && self.token(i + 1) == "("
            && self.token(i.wrapping_sub(1)) != "fn"
            && let Some(close) = self.close(i + 1).filter(|&c| c > i + 2)
        {
            let first = self.arguments(i + 1, close)[0].clone();
            self.push(all, Kind::Index, first.clone(), shifted(first));
        }
    }

    fn addresses(&self, i: usize, all: &mut Vec<Mutant>) {
        // Which of the arguments are pointers.
        let pointers: &[usize] = match self.token(i) {
            "cp_async16" => &[0, 1],
            "ldmatrix_x4" | "ldmatrix_x4_trans" => &[1],
            "put_four" | "load_four" | "reinterpret_cast" => &[0],
            _ => return,
        };
        // A definition has a type before the name.
        let before = self.token(i.wrapping_sub(1));
        if before.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && before != "return" {
            return;
        }
        let Some(open) = (i..self.tokens.len()).find(|&j| matches!(self.token(j), "(" | ";")) else { return };
        let Some(close) = self.close(open).filter(|_| self.token(open) == "(") else { return };
        let arguments = self.arguments(open, close);
        for argument in pointers.iter().filter_map(|&n| arguments.get(n)).filter(|a| !a.is_empty()) {
            let inner = self.span(argument.clone());
            // A cast of a whole array is where that starts; what is taken from it is indexed.
            if self.token(i) != "reinterpret_cast" || self.text[inner.clone()].contains('+') {
                let by = format!("({}) + 1", &self.text[inner]);
                self.push(all, Kind::Address, argument.clone(), by);
            }
        }
    }

    /// Whether the bracket at `open` is a part of a declaration (`float acc[4]`, `float (&v)[WIDTH]`), of an
    /// attribute or of a lambda.
    fn declares(&self, open: usize) -> bool {
        let before = self.token(open.wrapping_sub(1));
        let word = |t: &str| t.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if self.token(open + 1) == "&" || self.token(open + 1) == "[" || before == "[" {
            return true;
        }
        match before {
            // `][`: as the bracket before it.
            "]" => {
                let before =
                    (0..open).rev().find(|&j| self.token(j) == "[" && self.close(j) == Some(open - 1));
                before.is_some_and(|j| self.declares(j))
            }
            // `(&v)[`
            ")" => {
                let opened =
                    (0..open).rev().find(|&j| self.token(j) == "(" && self.close(j) == Some(open - 1));
                opened.is_some_and(|j| self.token(j + 1) == "&")
            }
            _ if !word(before) => true,
            _ => {
                let name = open - 1;
                let earlier = self.token(name.wrapping_sub(1));
                if word(earlier) && !matches!(earlier, "return" | "else" | "case") {
                    return true;
                }
                // `u32 fa[4], fb[4];`: back to the start of the statement, over initialisers and brackets.
                earlier == "," && self.in_declaration(name)
            }
        }
    }

    /// Whether the name follows a comma of a statement that began with a type and another name.
    fn in_declaration(&self, name: usize) -> bool {
        let mut depth = 0;
        let mut first = name;
        while first > 0 {
            match self.token(first - 1) {
                ")" | "]" | "}" => depth += 1,
                "(" | "[" | "{" if depth > 0 => depth -= 1,
                "(" | "[" | "{" | ";" => break,
                _ => {}
            }
            // A closing brace at the depth of the statement ends the one before it.
            if depth == 1
                && self.token(first - 1) == "}"
                && self.token(first) != ","
                && self.token(first) != ";"
            {
                break;
            }
            first -= 1;
        }
        let mut words = (first..name).map(|i| self.token(i)).filter(|t| *t != "const");
        let (Some(a), Some(b)) = (words.next(), words.next()) else { return false };
        let word = |t: &str| t.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        word(a) && word(b)
    }

    fn masks(&self, i: usize, all: &mut Vec<Mutant>) {
        match (self.token(i), self.token(i + 1)) {
            ("if", "(") => {
                let Some(close) = self.close(i + 1) else { return };
                let mut then = close + 1;
                while self.token(then) == "{" {
                    then += 1;
                }
                let leaves = matches!(self.token(then), "return" | "break" | "continue");
                self.push(all, Kind::Mask, i + 2..close, if leaves { "false" } else { "true" });
            }
            ("select", "(") => {
                let Some(close) = self.close(i + 1) else { return };
                if let [_, _, condition] = &self.arguments(i + 1, close)[..] {
                    self.push(all, Kind::Mask, condition.clone(), "true");
                }
            }
            ("min" | "max", "(") => {
                let Some(close) = self.close(i + 1) else { return };
                if let [first, _] = &self.arguments(i + 1, close)[..] {
                    let kept = self.text[self.span(first.clone())].to_owned();
                    self.push(all, Kind::Mask, i..close + 1, format!("({kept})"));
                }
            }
            ("?", _) => {
                // Back to where the condition starts: an opening bracket, a comma or an assignment.
                let mut depth = 0;
                let mut start = i;
                while start > 0 {
                    let token = self.token(start - 1);
                    match token {
                        ")" | "]" => depth += 1,
                        "(" | "[" if depth > 0 => depth -= 1,
                        "(" | "[" | "{" | ";" | "," | "=" | "return" | ":" | "?" if depth == 0 => break,
                        _ => {}
                    }
                    start -= 1;
                }
                if start < i {
                    self.push(all, Kind::Mask, start..i, "true");
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Vec<String> {
        mutants(text).iter().map(|m| format!("{:?}: {}", m.kind, m.changed_line(text))).collect()
    }

    #[test]
    fn barriers_and_waits_are_deleted_and_their_definitions_are_not() {
        assert_eq!(changed("    __syncthreads();  // why"), ["Barrier: ; // why"]);
        assert_eq!(changed("{ workgroupBarrier(); }"), ["Barrier: { ; }"]);
        assert_eq!(changed("cp_async_wait<STAGES - 2>();"), ["Wait: ;"]);
        assert!(changed("__device__ void cp_async_commit() {}").is_empty());
    }

    #[test]
    fn comparisons_are_flipped_and_templates_are_not() {
        assert_eq!(changed("x = a < b;"), ["Boundary: x = a <= b;", "Negation: x = a >= b;"]);
        assert_eq!(changed("x = a == b;"), ["Negation: x = a != b;"]);
        assert!(changed("template <u32 N> T f(vec4<f32> a, u32 b = c << 2);").is_empty());
        assert!(changed("#if A < B\n// a < b\n").is_empty());
    }

    #[test]
    fn uses_are_shifted_and_declarations_are_not() {
        assert_eq!(changed("x = a[i * 4] ;"), ["Index: x = a[(i * 4) + 1] ;"]);
        assert_eq!(changed("return a[i][j];").len(), 2);
        assert!(changed("u32 fa[WARP_M / 16][4], fb[4];").is_empty());
        assert!(changed("const auto f = [&](float (&v)[WIDTH]) {};").is_empty());
        assert_eq!(changed("u32 r[2] = {s[0], s[1]};").len(), 2);
        assert_eq!(changed("fa[0] = v.x, fa[1] = v.y;").len(), 2);
        assert_eq!(changed("store_out(i, load_x(j));").len(), 2);
        assert!(changed("fn load_four(i: u32) -> f32 {}").is_empty());
    }

    #[test]
    fn addresses_are_shifted() {
        assert_eq!(
            changed("cp_async16(to + r, ok ? x + at : x, 16);")[1..],
            [
                "Address: cp_async16(to + r, (ok ? x + at : x) + 1, 16);",
                "Mask: cp_async16(to + r, true ? x + at : x, 16);"
            ]
        );
        assert_eq!(
            changed("put_four<!A, P>(tile + a, v);"),
            ["Address: put_four<!A, P>((tile + a) + 1, v);"]
        );
        assert_eq!(changed("ldmatrix_x4(f, tile);"), ["Address: ldmatrix_x4(f, (tile) + 1);"]);
        assert_eq!(changed("x = *reinterpret_cast<float2*>(p + 2);").len(), 1);
        assert!(changed("__device__ void put_four(float* to, float4 v) {}").is_empty());
        assert!(changed("float* a = reinterpret_cast<float*>(shared);").is_empty());
    }

    #[test]
    fn masks_are_dropped() {
        assert_eq!(changed("if (ok) x = 1;"), ["Mask: if (true) x = 1;"]);
        assert_eq!(changed("if (done) { return; }"), ["Mask: if (false) { return; }"]);
        assert_eq!(changed("x = f(ok(i) ? 1 : 0);"), ["Mask: x = f(true ? 1 : 0);"]);
        assert_eq!(changed("x = select(a, b, c(d));"), ["Mask: x = select(a, b, true);"]);
        assert_eq!(changed("x = min(a + 1, b);"), ["Mask: x = (a + 1);"]);
    }

    #[test]
    fn a_mutant_says_where_it_is() {
        let text = "a\nb\n  if (c) d = 1;\n";
        let mutant = &mutants(text)[0];
        assert_eq!(mutant.line(text), 3);
        assert_eq!(mutant.apply(text), "a\nb\n  if (true) d = 1;\n");
        assert_eq!(mutant.original_line(text), "if (c) d = 1;");
    }
}
