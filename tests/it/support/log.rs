//! Captures the log events of one test, those of its thread, in which its actors run.

use std::cell::RefCell;
use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// The events captured so far. Capturing ends on drop.
pub(crate) struct Log {
    lines: Lines,
}

type Lines = Arc<Mutex<Vec<Line>>>;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) message: String,
    /// ` key=value` for each other field, in the order of the source.
    pub(crate) fields: String,
}

thread_local! {
    /// The destination of this thread's events, while a test captures them.
    static CAPTURED: RefCell<Option<Lines>> = const { RefCell::new(None) };
}

/// The only subscriber of the process. One per test would not work: `tracing` remembers for the whole process whether
/// any subscriber wants an event, and tests begin and end in parallel.
struct Capture;

impl Log {
    /// Begins to capture events of every level.
    pub(crate) fn capture() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Capture);
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
        let lines = Lines::default();
        CAPTURED.set(Some(Arc::clone(&lines)));
        Self { lines }
    }

    /// The events of this project so far.
    pub(crate) fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap().clone()
    }

    /// The messages of this level or a more severe one that contain this text.
    pub(crate) fn with(&self, level: Level, text: &str) -> Vec<String> {
        let lines = self.lines();
        let lines = lines.into_iter().filter(|line| line.level <= level);
        let messages = lines.map(|line| line.message);
        messages.filter(|message| message.contains(text)).collect()
    }

    /// All events with their fields, as one text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            writeln!(text, "{:<5} {}{}", line.level, line.message, line.fields).unwrap();
        }
        text
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        CAPTURED.set(None);
    }
}

impl<S: Subscriber> Layer<S> for Capture {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let captured = CAPTURED.with_borrow(Clone::clone);
        let Some(lines) = captured.filter(|_| event.metadata().target().starts_with("bgworker"))
        else {
            return;
        };
        let mut line = Line {
            level: *event.metadata().level(),
            message: String::new(),
            fields: String::new(),
        };
        event.record(&mut line);
        lines.lock().unwrap().push(line);
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            write!(self.message, "{value:?}").unwrap();
        } else {
            write!(self.fields, " {}={value:?}", field.name()).unwrap();
        }
    }
}
