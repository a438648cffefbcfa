//! `sbxrt du`: what the store takes of the disk.

use std::fmt::Write as _;

use sbxrt::image::Usage;
use serde::Serialize;

use crate::args::UsageArguments;
use crate::error::Result;
use crate::location;
use crate::printer::Printer;
use crate::quantity::format_size;

/// What takes how many bytes, for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    store: String,
    total: u64,
    images: Vec<ImageDocument<'a>>,
    layers: Vec<LayerDocument>,
    documents: u64,
    temporary: u64,
}

#[derive(Debug, Serialize)]
struct ImageDocument<'a> {
    name: &'a str,
    platform: String,
    digest: String,
    layers: Vec<String>,
    total: u64,
    shared: u64,
    own: u64,
    /// Seconds since 1970.
    last_used: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LayerDocument {
    chain_id: String,
    bytes: u64,
    images: usize,
}

/// Shows what the store takes.
pub(crate) fn run(arguments: &UsageArguments, printer: Printer) -> Result<()> {
    let store = location::open(&arguments.store)?;
    let usage = store.usage()?;
    if arguments.json {
        return printer.document(&document(&store.root().display().to_string(), &usage));
    }
    printer.data(&table(&usage))
}

fn document<'a>(store: &str, usage: &'a Usage) -> Document<'a> {
    let seconds = |time: std::time::SystemTime| {
        let since = time.duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    };
    let images = usage.images.iter().map(|image| ImageDocument {
        name: &image.name,
        platform: image.platform.to_string(),
        digest: image.digest.to_string(),
        layers: image.layers.iter().map(ToString::to_string).collect(),
        total: image.total,
        shared: image.shared,
        own: image.own,
        last_used: image.last_used.map(seconds),
    });
    let layers = usage.layers.iter().map(|layer| LayerDocument {
        chain_id: layer.chain_id.to_string(),
        bytes: layer.bytes,
        images: layer.images,
    });
    Document {
        store: store.to_owned(),
        total: usage.total,
        images: images.collect(),
        layers: layers.collect(),
        documents: usage.documents,
        temporary: usage.temporary,
    }
}

/// Writes a line for each image, then what the parts take.
fn table(usage: &Usage) -> String {
    let head = ["IMAGE", "TOTAL", "SHARED", "OWN"].map(str::to_owned);
    let rows = usage.images.iter().map(|image| {
        [
            crate::diagnostics::harmless(&image.name),
            format_size(image.total),
            format_size(image.shared),
            format_size(image.own),
        ]
    });
    let rows = std::iter::once(head).chain(rows).collect::<Vec<_>>();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [first, second, third, fourth] =
        std::array::from_fn(|column| width(column).unwrap_or_default());
    let mut text = String::new();
    // Writing to a string cannot fail.
    if !usage.images.is_empty() {
        for [name, total, shared, own] in &rows {
            let _ = writeln!(
                text,
                "{name:first$}  {total:>second$}  {shared:>third$}  {own:>fourth$}"
            );
        }
        text.push('\n');
    }
    let sum = |used: bool| {
        let layers = usage.layers.iter();
        let layers = layers.filter(|layer| (layer.images > 0) == used);
        layers.map(|layer| layer.bytes).sum::<u64>()
    };
    for (name, bytes) in [
        ("layers", sum(true)),
        ("layers of no image", sum(false)),
        ("documents", usage.documents),
        ("unfinished", usage.temporary),
        ("together", usage.total),
    ] {
        let _ = writeln!(text, "{name:18}  {:>10}", format_size(bytes));
    }
    text
}

#[cfg(test)]
mod tests {
    use sbxrt::image::{Digest, ImageUsage, LayerUsage};

    use super::*;

    #[test]
    fn a_table_tells_what_is_shared() {
        let image = |name: &str, total, shared| ImageUsage {
            name: name.to_owned(),
            platform: "linux/amd64".parse().unwrap(),
            digest: Digest::of(name.as_bytes()),
            layers: Vec::new(),
            total,
            shared,
            own: total - shared,
            last_used: None,
        };
        let layer = |name: &[u8], bytes, images| LayerUsage {
            chain_id: Digest::of(name),
            bytes,
            images,
        };
        let usage = Usage {
            images: vec![
                image("docker.io/library/python:3.12", 130 << 20, 80 << 20),
                image("docker.io/library/debian:12", 80 << 20, 80 << 20),
            ],
            layers: vec![
                layer(b"a", 80 << 20, 2),
                layer(b"b", 50 << 20, 1),
                layer(b"c", 7 << 20, 0),
            ],
            documents: 40960,
            temporary: 0,
            total: (137 << 20) + 40960,
        };
        insta::assert_snapshot!(table(&usage));
    }
}
