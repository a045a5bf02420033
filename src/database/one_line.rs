//! Texts from outside, made fit to be shown and kept. Pure.

use std::fmt::{self, Write as _};

/// The longest text of a server that is shown or kept, in bytes. A statement can make a server say megabytes.
const TEXT_MAX: usize = 4_096;

/// A text from outside, which may hold anything: shown on one line, with control characters escaped so that none steers
/// a terminal, and cut if it is too long to keep.
pub(crate) struct OneLine<'t>(pub(crate) &'t str);

// === impl OneLine ===

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = TEXT_MAX;
        for c in self.0.chars() {
            let escaped = c.is_control().then(|| c.escape_default());
            let length = escaped
                .as_ref()
                .map_or_else(|| c.len_utf8(), ExactSizeIterator::len);
            let Some(rest) = left.checked_sub(length) else {
                return write!(f, "… (cut, of {} bytes)", self.0.len());
            };
            left = rest;
            match escaped {
                Some(escaped) => write!(f, "{escaped}")?,
                // Letters of any script stay as they are.
                None => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_two_characters_and_says_how_long_it_was() {
        let kept = "é".repeat(TEXT_MAX / 2);
        assert_eq!(OneLine(&kept).to_string(), kept);
        let cut = OneLine(&format!("{kept}é")).to_string();
        assert_eq!(cut, format!("{kept}… (cut, of 4098 bytes)"));
        let cut = OneLine(&format!("x{kept}")).to_string();
        assert_eq!(cut.find('…'), Some(TEXT_MAX - 1), "no half of a character");
        let escaped = OneLine(&"\n".repeat(5_000)).to_string();
        assert!(escaped.starts_with(r"\n\n") && escaped.len() < TEXT_MAX + 50);
    }
}
