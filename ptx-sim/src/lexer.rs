//! PTX text to tokens. A token borrows the text and knows its line.

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tok<'a> {
    /// A directive, opcode, register, label or symbol: everything from `.` or a letter on, with its dots.
    Word(&'a str),
    /// An integer literal, as the 64 bits it denotes.
    Int(u64),
    /// `0f...`: the bits of an f32.
    F32(u32),
    /// `0d...` or a decimal literal with a point: the bits of an f64.
    F64(u64),
    Str(&'a str),
    Punct(u8),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'a> {
    pub(crate) tok: Tok<'a>,
    pub(crate) line: u32,
}

pub(crate) fn error(line: u32, message: impl Into<String>) -> Error {
    Error::Parse { line, message: message.into() }
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn is_word(c: u8) -> bool {
    // `::` occurs inside modifiers only (`.shared::cta`); it is joined in `word_end`.
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

fn word_end(s: &[u8], mut i: usize) -> usize {
    loop {
        while i < s.len() && is_word(s[i]) {
            i += 1;
        }
        if i + 2 < s.len() && &s[i..i + 2] == b"::" && s[i + 2].is_ascii_alphanumeric() {
            i += 2;
        } else {
            return i;
        }
    }
}

pub(crate) fn lex(text: &str) -> Result<Vec<Token<'_>>> {
    let s = text.as_bytes();
    let (mut i, mut line) = (0, 1u32);
    let mut out = Vec::with_capacity(s.len() / 4);
    while i < s.len() {
        let c = s[i];
        let start = i;
        let tok = match c {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' | 0 => {
                i += 1;
                continue;
            }
            b'/' if s.get(i + 1) == Some(&b'/') => {
                while i < s.len() && s[i] != b'\n' {
                    i += 1;
                }
                continue;
            }
            b'/' if s.get(i + 1) == Some(&b'*') => {
                let first = line;
                i += 2;
                loop {
                    match s.get(i) {
                        None => return Err(error(first, "comment without an end")),
                        Some(b'*') if s.get(i + 1) == Some(&b'/') => break,
                        Some(b'\n') => line += 1,
                        Some(_) => {}
                    }
                    i += 1;
                }
                i += 2;
                continue;
            }
            b'"' => {
                i += 1;
                while i < s.len() && s[i] != b'"' && s[i] != b'\n' {
                    i += 1;
                }
                if s.get(i) != Some(&b'"') {
                    return Err(error(line, "string without an end"));
                }
                i += 1;
                Tok::Str(&text[start + 1..i - 1])
            }
            b'0'..=b'9' => {
                while i < s.len() && (s[i].is_ascii_alphanumeric() || s[i] == b'.' || s[i] == b'_') {
                    i += 1;
                }
                number(&text[start..i])
                    .ok_or_else(|| error(line, format!("bad number `{}`", &text[start..i])))?
            }
            c if is_word_start(c) => {
                // Directives may stand without a space between: `.reg.b32`.
                i = if c == b'.' {
                    i + 1 + s[i + 1..].iter().take_while(|&&c| is_word(c) && c != b'.').count()
                } else {
                    word_end(s, i)
                };
                Tok::Word(&text[start..i])
            }
            c if c.is_ascii_punctuation() => {
                i += 1;
                Tok::Punct(c)
            }
            _ => return Err(error(line, "character outside of PTX's set")),
        };
        out.push(Token { tok, line });
    }
    Ok(out)
}

fn number(s: &str) -> Option<Tok<'static>> {
    let hex = |digits: &str, len: usize| {
        (digits.len() == len).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
    };
    let b = s.as_bytes();
    if b.len() > 2 && b[0] == b'0' {
        match b[1] {
            b'f' | b'F' => return hex(&s[2..], 8).map(|v| Tok::F32(v as u32)),
            b'd' | b'D' => return hex(&s[2..], 16).map(Tok::F64),
            _ => {}
        }
    }
    if s.contains('.') {
        return s.parse::<f64>().ok().map(|v| Tok::F64(v.to_bits()));
    }
    let s = s.strip_suffix(['U', 'u']).unwrap_or(s);
    let b = s.as_bytes();
    let value = if b.len() > 1 && b[0] == b'0' {
        match b[1] {
            b'x' | b'X' => u64::from_str_radix(&s[2..], 16),
            b'b' | b'B' => u64::from_str_radix(&s[2..], 2),
            _ => u64::from_str_radix(&s[1..], 8),
        }
    } else {
        s.parse::<u64>()
    };
    value.ok().map(Tok::Int)
}
