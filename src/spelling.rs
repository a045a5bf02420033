//! Words in messages: the known word nearest to a misspelt one, and which words a message may repeat at all.

/// The candidate nearest to `word`, if one is near enough to be what was meant.
pub(crate) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let lower = candidate.to_lowercase();
            let similarity = strsim::jaro_winkler(&word, &lower);
            // One slip in a short word leaves little that is alike.
            let is_slip = word.len() > 2 && strsim::osa_distance(&word, &lower) == 1;
            let similarity = if is_slip {
                similarity.max(0.9)
            } else {
                similarity
            };
            (similarity, candidate)
        })
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// The candidate that differs from `word` by a slip or two.
pub(crate) fn nearly<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let candidates = candidates.into_iter();
    let slips = candidates.map(|candidate| (strsim::osa_distance(word, candidate), candidate));
    let nearest = slips.filter(|(slips, _)| (1..=2).contains(slips)).min();
    nearest.map(|(_, candidate)| candidate)
}

/// A hint about an unknown word: the nearest known word, or all known words, after `introduction`.
pub(crate) fn suggestion(word: &str, introduction: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(nearest) => did_you_mean(nearest),
        None => format!("{introduction} {}", known.join(", ")),
    }
}

/// Suggests a word.
pub(crate) fn did_you_mean(word: &str) -> String {
    format!("did you mean \"{word}\"?")
}

/// The longest word that a message repeats.
const WORD_MAX: usize = 63;

/// A text as a message may repeat it: in quotes, or nothing if it does not look like a word. A value in the wrong
/// place may be a connection string with its password.
pub(crate) fn quoted_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
    if text.len() <= WORD_MAX && text.chars().all(is_plain) {
        format!(" \"{text}\"")
    } else {
        String::new()
    }
}
