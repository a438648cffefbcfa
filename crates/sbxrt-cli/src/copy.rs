//! Copying images: `sbxrt copy` and `sbxrt push`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use sbxrt::image::{Choice, Copied, CopyOptions, Outcome, Place, Store};
use sbxrt::{Image, Platform, PullOptions, Source};
use serde::Serialize;

use crate::access;
use crate::args::{CopyArguments, PushArguments, TransferArguments};
use crate::error::{Error, Result};
use crate::location;
use crate::printer::Printer;
use crate::progress::{Follower, Show};
use crate::quantity::{format_duration, format_size};
use crate::signals::unless_interrupted;

/// Copies an image from one place to another.
pub(crate) fn copy(arguments: CopyArguments, printer: Printer) -> Result<()> {
    let from = arguments.source.parse()?;
    let to = arguments.destination.parse()?;
    transfer(&from, &to, arguments.transfer, arguments.all, printer)
}

/// Copies an image of the store to where its name says, or elsewhere.
pub(crate) fn push(arguments: PushArguments, printer: Printer) -> Result<()> {
    let image = arguments.image;
    let name = image.strip_prefix("store:").unwrap_or(&image);
    let to = match &arguments.destination {
        Some(destination) => destination.parse()?,
        None => match name.parse::<Source>()? {
            source @ Source::Registry(_) => Place::Source(source),
            _ => return Err(Error::NoDestination { image }),
        },
    };
    let from = Place::Store(name.to_owned());
    transfer(&from, &to, arguments.transfer, false, printer)
}

fn transfer(
    from: &Place,
    to: &Place,
    arguments: TransferArguments,
    all: bool,
    printer: Printer,
) -> Result<()> {
    let store = location::open(&arguments.store)?;
    let options = PullOptions {
        plain_http: arguments.plain_http,
        ..PullOptions::default()
    };
    let options = CopyOptions {
        source: options.clone(),
        destination: options,
        choice: if all {
            Choice::All
        } else {
            Choice::Platform(arguments.platform.unwrap_or_else(Platform::host))
        },
        preserve_digests: arguments.preserve_digests,
    };
    let document = carry(&store, from, to, options, printer)?;
    if arguments.json {
        return printer.document(&document);
    }
    printer.data(&format!(
        "{}\n",
        document.digest.as_deref().unwrap_or(&document.destination)
    ))
}

/// Copies an image that was just made here to where it is wanted as well.
pub(crate) fn deliver(
    store: &Store,
    image: &Image,
    to: &Place,
    printer: Printer,
) -> Result<Document> {
    // By its digest: its name may have moved on meanwhile.
    let from = Place::Store(crate::build::digest(image));
    let options = CopyOptions {
        choice: Choice::Platform(image.platform.clone()),
        ..CopyOptions::default()
    };
    carry(store, &from, to, options, printer)
}

/// Copies, with what is known of the registries, and says what was done.
fn carry(
    store: &Store,
    from: &Place,
    to: &Place,
    mut options: CopyOptions,
    printer: Printer,
) -> Result<Document> {
    let is_registry = |place: &Place| matches!(place, Place::Source(Source::Registry(_)));
    if is_registry(from) || is_registry(to) {
        options.source = access::equip(options.source)?;
        options.destination = options.source.clone();
    }
    let began = Instant::now();
    let copied = run(store, from, to, &options, printer)?;
    let document = Document::new(from, to, &copied);
    printer.note(&document.summary(began.elapsed()));
    Ok(document)
}

/// Copies while it listens for signals: one ends it, and then nothing unfinished is left.
fn run(
    store: &Store,
    from: &Place,
    to: &Place,
    options: &CopyOptions,
    printer: Printer,
) -> Result<Copied> {
    let follower = Follower::new(from.to_string(), Show::for_people(printer), printer);
    let copying = async { Ok(store.copy(from, to, options, &follower).await?) };
    unless_interrupted(copying, |_| follower.clear_bars())
}

/// What was copied, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct Document {
    source: String,
    destination: String,
    /// Of the manifest or index at the destination; none for a directory.
    digest: Option<String>,
    media_type: Option<String>,
    /// The bytes of all blobs, and of those that were carried over.
    size: u64,
    copied_bytes: u64,
    blobs: Vec<Blob>,
}

#[derive(Debug, Serialize)]
struct Blob {
    digest: String,
    size: u64,
    media_type: String,
    outcome: &'static str,
}

impl Document {
    fn new(from: &Place, to: &Place, copied: &Copied) -> Self {
        let bytes = |wanted: &dyn Fn(Outcome) -> bool| {
            copied
                .blobs
                .iter()
                .filter(|blob| wanted(blob.outcome))
                .map(|blob| blob.size)
                .sum()
        };
        Self {
            source: from.to_string(),
            destination: to.to_string(),
            digest: copied.digest.as_ref().map(ToString::to_string),
            media_type: copied.media_type.clone(),
            size: bytes(&|_| true),
            copied_bytes: bytes(&|outcome| outcome == Outcome::Copied),
            blobs: copied
                .blobs
                .iter()
                .map(|blob| Blob {
                    digest: blob.digest.to_string(),
                    size: blob.size,
                    media_type: blob.media_type.clone(),
                    outcome: match blob.outcome {
                        Outcome::Copied => "copied",
                        Outcome::Existed => "existed",
                        Outcome::Mounted => "mounted",
                    },
                })
                .collect(),
        }
    }

    fn summary(&self, time: Duration) -> String {
        let Self {
            source,
            destination,
            ..
        } = self;
        if self.blobs.is_empty() {
            return format!("Unpacked {source} to {destination}");
        }
        let carried = self
            .blobs
            .iter()
            .filter(|blob| blob.outcome == "copied")
            .count();
        let there = self.blobs.len() - carried;
        let blobs = |count| match count {
            1 => "1 blob".to_owned(),
            count => format!("{count} blobs"),
        };
        // Tenths of a second are as much as anybody reads.
        let time = Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(0) / 100 * 100);
        let mut text = format!("Copied {source} to {destination}");
        // Writing to a string cannot fail.
        if carried > 0 {
            let size = format_size(self.copied_bytes);
            let _ = write!(text, ": {}, {size}", blobs(carried));
            if !time.is_zero() {
                let _ = write!(text, " in {}", format_duration(time));
            }
        }
        if there > 0 {
            let separator = if carried > 0 { ";" } else { ":" };
            let _ = write!(text, "{separator} {} there already", blobs(there));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_says_what_was_carried_and_what_was_there() {
        let blob = |outcome| Blob {
            digest: String::new(),
            size: 1024,
            media_type: String::new(),
            outcome,
        };
        let summary = |blobs: Vec<Blob>, copied_bytes| {
            let document = Document {
                source: "a".to_owned(),
                destination: "b".to_owned(),
                digest: None,
                media_type: None,
                size: 0,
                copied_bytes,
                blobs,
            };
            document.summary(Duration::from_millis(1234))
        };
        assert_eq!(summary(Vec::new(), 0), "Unpacked a to b");
        assert_eq!(
            summary(vec![blob("copied"), blob("copied")], 2048),
            "Copied a to b: 2 blobs, 2 KiB in 1.2s"
        );
        assert_eq!(
            summary(vec![blob("copied"), blob("existed")], 1024),
            "Copied a to b: 1 blob, 1 KiB in 1.2s; 1 blob there already"
        );
        assert_eq!(
            summary(vec![blob("existed"), blob("mounted")], 0),
            "Copied a to b: 2 blobs there already"
        );
    }
}
