//! The progress of a pull: redrawn in place on a terminal, plain lines elsewhere, or JSON.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    time::Instant,
};

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use oci_spec::image::Descriptor;
use windlass::{
    images::progress::{Event, Events},
    remotes::ingest_key,
};

use crate::output;

/// Shows events until there are no more, then a summary.
pub(crate) async fn show(mut events: Events, json: bool) -> io::Result<()> {
    if json {
        while let Some(event) = events.recv().await {
            output::line(serde_json::to_string(&event)?)?;
        }
        return Ok(());
    }
    let mut display = Display::new();
    while let Some(event) = events.recv().await {
        display.event(event);
    }
    display.summary();
    Ok(())
}

struct Display {
    lines: MultiProgress,
    bars: HashMap<String, Line>,
    terminal: bool,
    started: Instant,
    transferred: u64,
}

/// What is shown of one resource.
struct Line {
    bar: ProgressBar,
    state: &'static str,
}

impl Display {
    fn new() -> Self {
        Self {
            lines: MultiProgress::new(),
            bars: HashMap::new(),
            terminal: io::stderr().is_terminal(),
            started: Instant::now(),
            transferred: 0,
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Resolved { name, descriptor } => self.update(name, &descriptor, "resolved", None),
            Event::Waiting { descriptor } => {
                self.update(ingest_key(&descriptor), &descriptor, "waiting", Some(0));
            }
            Event::Downloading { descriptor, offset } => {
                self.update(ingest_key(&descriptor), &descriptor, "downloading", Some(offset));
            }
            Event::Exists { descriptor } => self.update(ingest_key(&descriptor), &descriptor, "exists", None),
            Event::Downloaded { descriptor, transferred } => {
                self.transferred += transferred;
                self.update(ingest_key(&descriptor), &descriptor, "done", None);
            }
            Event::Uploading { descriptor, offset } => {
                self.update(ingest_key(&descriptor), &descriptor, "uploading", Some(offset));
            }
            Event::Mounted { descriptor } => {
                self.update(ingest_key(&descriptor), &descriptor, "mounted", None);
            }
            Event::Uploaded { descriptor, transferred } => {
                self.transferred += transferred;
                self.update(ingest_key(&descriptor), &descriptor, "done", None);
            }
            Event::Unpacking { descriptor, offset } => {
                self.update(ingest_key(&descriptor), &descriptor, "unpacking", Some(offset));
            }
            Event::Unpacked { descriptor, existed } => {
                let state = if existed { "exists" } else { "done" };
                self.update(ingest_key(&descriptor), &descriptor, state, None);
            }
            _ => {}
        }
    }

    /// Shows a new state of a resource: at `position` bytes, or complete.
    fn update(&mut self, key: String, descriptor: &Descriptor, state: &'static str, position: Option<u64>) {
        let line = self.bars.entry(key).or_insert_with_key(|key| Line {
            bar: self
                .lines
                .add(ProgressBar::new(descriptor.size()).with_style(style()).with_prefix(short(key))),
            state: "",
        });
        // A layer is unpacked while it arrives; what is behind is what one waits for.
        line.bar.set_position(position.unwrap_or(descriptor.size()));
        if line.state == state {
            return;
        }
        line.state = state;
        line.bar.set_message(state);
        if position.is_none() {
            line.bar.abandon();
        }
        if !self.terminal {
            eprintln!("{} {state}", line.bar.prefix());
        }
    }

    fn summary(&self) {
        if self.bars.is_empty() {
            return;
        }
        let elapsed = self.started.elapsed();
        let rate = self.transferred as f64 / elapsed.as_secs_f64().max(f64::EPSILON);
        eprintln!(
            "elapsed: {:.1} s  total: {}  rate: {}/s",
            elapsed.as_secs_f64(),
            BinaryBytes(self.transferred),
            BinaryBytes(rate as u64),
        );
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:32} {msg:12} |{bar:30}| {binary_bytes}/{binary_total_bytes}")
        .expect("the template is well formed")
        .progress_chars("=> ")
}

/// The key with its digest cut to what fits a line.
fn short(key: &str) -> String {
    match key.split_once("sha256:") {
        Some((kind, hex)) => format!("{kind}sha256:{}", &hex[..hex.len().min(12)]),
        None => key.to_owned(),
    }
}
