//! All that is wrong with a worker's tables, told at once, each with what mends it. Pure.

use std::error::Error;
use std::fmt;

/// What is wrong, in the order in which it can be mended: at least one thing.
#[derive(Debug)]
pub(super) struct Faults<E>(Vec<E>);

// === impl Faults ===

impl<E> Faults<E> {
    /// Refuses the tables if anything is wrong with them.
    pub(super) fn refuse(faults: Vec<E>) -> Result<(), Self> {
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Self(faults))
        }
    }
}

impl<E> From<E> for Faults<E> {
    fn from(fault: E) -> Self {
        Self(vec![fault])
    }
}

impl<E: Error + Send + Sync + 'static> Faults<E> {
    /// The error to report: a single fault is told as it is.
    pub(super) fn into_error(mut self) -> Box<dyn Error + Send + Sync> {
        match (self.0.len(), self.0.pop()) {
            (1, Some(fault)) => Box::new(fault),
            (_, last) => {
                self.0.extend(last);
                Box::new(self)
            }
        }
    }
}

impl<E: fmt::Display> fmt::Display for Faults<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} things are to be mended, in this order", self.0.len())?;
        for (n, fault) in (1..).zip(&self.0) {
            let separator = if n == 1 { ":" } else { ";" };
            write!(f, "{separator} ({n}) {fault}")?;
        }
        Ok(())
    }
}

impl<E: Error> Error for Faults<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fault_is_told_as_it_is_and_several_are_numbered() {
        let told = |faults: &[&str]| {
            let faults = faults.iter().map(|fault| std::io::Error::other(*fault));
            let refused = Faults::refuse(faults.collect());
            refused.map_err(|faults| faults.into_error().to_string())
        };
        assert_eq!(told(&[]), Ok(()));
        assert_eq!(told(&["a"]), Err("a".to_owned()));
        let both = "2 things are to be mended, in this order: (1) a; (2) b";
        assert_eq!(told(&["a", "b"]), Err(both.to_owned()));
    }
}
