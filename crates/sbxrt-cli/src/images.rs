//! The images of the store: `sbxrt images`, `sbxrt inspect` and `sbxrt rmi`.

use std::path::Path;

use sbxrt::image::{ImageUsage, Store};
use sbxrt::{Image, Platform, Source};
use serde::Serialize;
use serde_json::Value;

use crate::args::{ImagesArguments, InspectArguments, RemoveArguments};
use crate::diagnostics::Diagnostic;
use crate::error::Result;
use crate::location;
use crate::printer::Printer;
use crate::quantity::{count, format_size};

/// The fewest digits that a digest may be shortened to, as in the store.
const SHORTEST_DIGEST: usize = 6;

/// What a list says of an image.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    name: &'a str,
    digest: Option<String>,
    platform: String,
    size: u64,
    /// What of it no other image has; none where that was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    own_size: Option<u64>,
    created: Option<&'a str>,
    /// The additional store that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    additional_store: Option<&'a Path>,
}

impl<'a> Summary<'a> {
    /// Describes `image`.
    pub(crate) fn new(image: &'a Image, own_size: Option<u64>) -> Self {
        Self {
            name: &image.name,
            digest: image.digest.as_ref().map(ToString::to_string),
            platform: image.platform.to_string(),
            size: image.size,
            own_size,
            created: image.created.as_deref(),
            additional_store: image.additional_store.as_deref(),
        }
    }

    fn row(&self) -> [String; 6] {
        let digest = self.digest.as_deref().unwrap_or("-");
        let digest = digest
            .split_once(':')
            .map_or(digest, |(_, hex)| hex.get(..12).unwrap_or(hex));
        // Written by a stranger: only what a date is made of comes to the terminal.
        let is_date = |c: &char| c.is_ascii_digit() || *c == '-';
        let created: String = self
            .created
            .unwrap_or("-")
            .chars()
            .take_while(is_date)
            .take(10)
            .collect();
        let own = match (self.own_size, self.additional_store) {
            (_, Some(store)) => format!("in {}", store.display()),
            (Some(own), None) => format_size(own),
            (None, None) => "-".to_owned(),
        };
        [
            self.name.to_owned(),
            digest.to_owned(),
            self.platform.clone(),
            created,
            format_size(self.size),
            own,
        ]
    }
}

/// What is known of an image: what a list says of it, then its manifest and configuration.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    summary: Summary<'a>,
    #[serde(flatten)]
    details: Value,
}

/// Lists the images.
pub(crate) fn list(arguments: &ImagesArguments, printer: Printer) -> Result<()> {
    let store = location::open(&arguments.store)?;
    let images = store.images()?;
    let sizes = store.sizes()?;
    let own_size = |image: &Image| {
        let own = |usage: &&ImageUsage| {
            image.additional_store.is_none()
                && usage.name == image.name
                && usage.platform == image.platform
        };
        sizes.iter().find(own).map(|usage| usage.own)
    };
    let summaries: Vec<Summary<'_>> = images
        .iter()
        .map(|image| Summary::new(image, own_size(image)))
        .collect();
    if arguments.json {
        return printer.document(&summaries);
    }
    if summaries.is_empty() {
        printer.note(
            "no images; `sbxrt pull NAME` gets one, and `sbxrt run host: COMMAND` needs none",
        );
        return Ok(());
    }
    printer.data(&table(&summaries))
}

/// Prints what is known of an image.
pub(crate) fn inspect(arguments: InspectArguments, printer: Printer) -> Result<()> {
    let store = location::open(&arguments.store)?;
    let image = find(
        &store,
        &arguments.image,
        &arguments.platform.unwrap_or_else(Platform::host),
    )?;
    let details = store.inspect_raw(&image)?;
    printer.document(&Inspected {
        summary: Summary::new(&image, None),
        details,
    })
}

/// Removes images. One that cannot be removed does not keep the others; `false` where there was one.
pub(crate) fn remove(arguments: &RemoveArguments, printer: Printer) -> Result<bool> {
    let store = location::open(&arguments.store)?;
    let (mut layers, mut bytes, mut all_removed) = (0, 0, true);
    for name in &arguments.images {
        let removed = if arguments.force {
            store.remove_used(name)
        } else {
            store.remove(name)
        };
        match removed {
            Ok(removed) => {
                for name in &removed.images {
                    printer.data(&format!("{name}\n"))?;
                }
                layers += removed.layers;
                bytes += removed.bytes;
            }
            Err(error) => {
                printer.error(&Diagnostic::new(&error.into()));
                all_removed = false;
            }
        }
    }
    if layers > 0 {
        let layers = count(layers, "layer");
        printer.note(&format!("Removed {layers}, {}", format_size(bytes)));
    }
    Ok(all_removed)
}

/// Finds an image by name or by the first digits of its digest.
fn find(store: &Store, name: &str, platform: &Platform) -> Result<Image> {
    let source = name.parse::<Source>();
    if let Ok(source) = &source
        && let Some(image) = store.find(source, platform)?
    {
        return Ok(image);
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if hex.len() >= SHORTEST_DIGEST && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let fits = |image: &Image| {
            [&image.digest, &image.config_digest]
                .into_iter()
                .flatten()
                .any(|digest| digest.hex().starts_with(hex))
        };
        if let Some(image) = store.images()?.into_iter().find(fits) {
            return Ok(image);
        }
    }
    // What cannot be a name is better told so than called unknown.
    source?;
    Err(sbxrt::image::Error::UnknownImage {
        name: name.to_owned(),
    }
    .into())
}

/// Writes a table; its columns are as wide as their widest cell, sizes are flush right.
fn table(summaries: &[Summary<'_>]) -> String {
    let head = ["IMAGE", "DIGEST", "PLATFORM", "CREATED", "SIZE", "OWN"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(summaries.iter().map(Summary::row))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let [first, second, third, fourth, fifth, sixth] = std::array::from_fn(width);
    let lines = rows.iter().map(|[image, digest, platform, created, size, own]| {
        format!("{image:first$}  {digest:second$}  {platform:third$}  {created:fourth$}  {size:>fifth$}  {own:>sixth$}\n")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up_and_shows_nothing_that_a_stranger_wrote() {
        let summaries = [
            Summary {
                name: "docker.io/library/python:3.12-slim",
                digest: Some(format!("sha256:{}", "0123456789abcdef".repeat(4))),
                platform: "linux/amd64".to_owned(),
                size: 131_072_000,
                own_size: Some(1 << 20),
                additional_store: None,
                created: Some("2026-03-04T05:06:07Z"),
            },
            Summary {
                name: "oci:/srv/x",
                digest: None,
                platform: "linux/arm64".to_owned(),
                size: 0,
                own_size: None,
                additional_store: Some(Path::new("/site/images")),
                created: Some("\x1b[2Jnow"),
            },
        ];
        insta::assert_snapshot!(table(&summaries));
    }

    #[test]
    fn an_unknown_image_is_told_from_an_impossible_name() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let message = |name| {
            find(&store, name, &Platform::host())
                .unwrap_err()
                .to_string()
        };
        assert_eq!(message("busybox"), "no image \"busybox\" in the store");
        assert!(
            message("./rootfs").starts_with("invalid image"),
            "{}",
            message("./rootfs")
        );
        assert!(find(&store, "host:", &Platform::host()).is_ok());
    }
}
