//! The statements that errors about tables name.

/// The faults that an error tells, one or several.
fn faults(refusal: &str) -> Vec<String> {
    let Some((_, all)) = refusal.split_once("in this order: (1) ") else {
        return vec![refusal.to_owned()];
    };
    let mut faults = vec![String::new()];
    for part in all.split("; ") {
        let number = format!("({}) ", faults.len() + 1);
        if let Some(next) = part.strip_prefix(&number) {
            faults.push(next.to_owned());
        } else if let Some(fault) = faults.last_mut() {
            if !fault.is_empty() {
                fault.push_str("; ");
            }
            fault.push_str(part);
        }
    }
    faults
}

/// The last statement that each fault names, in the order in which they are to be run.
pub(crate) fn mends(refusal: &str) -> Vec<String> {
    let mend = |fault: &String| {
        let begins = ["; this ", "; to "].map(|begin| fault.rsplit_once(begin));
        let (_, mend) = begins.into_iter().flatten().next()?;
        let (_, mend) = mend.split_once(": ")?;
        Some(alone(mend))
    };
    faults(refusal).iter().filter_map(mend).collect()
}

/// The statement that follows these words.
pub(crate) fn after(refusal: &str, words: &str) -> String {
    let fault = faults(refusal);
    let mut found = fault.iter().filter_map(|fault| fault.split_once(words));
    let (_, mend) = found.next().unwrap_or_else(|| panic!("{words}: {refusal}"));
    alone(mend)
}

/// A statement without what is told after it.
fn alone(mend: &str) -> String {
    let ends = ["; its columns are", "; or this", "; this "].iter();
    let end = ends.filter_map(|end| mend.find(end)).min();
    mend[..end.unwrap_or(mend.len())].to_owned()
}
