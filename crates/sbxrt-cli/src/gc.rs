//! `sbxrt gc`: what nobody needs goes.

use sbxrt::Remains;
use sbxrt::image::{CollectOptions, Collected};
use serde::Serialize;

use crate::args::CollectArguments;
use crate::error::Result;
use crate::location;
use crate::printer::Printer;
use crate::quantity::{count, format_size};
use crate::status;

/// What was removed, for programs.
#[derive(Debug, Serialize)]
struct Document<'a> {
    dry_run: bool,
    images: &'a [String],
    in_use: &'a [String],
    layers: usize,
    blobs: usize,
    leftovers: usize,
    bytes: u64,
    cgroups: usize,
    stuck: &'a [i32],
}

/// Removes what no image needs, and images that are not used.
pub(crate) fn run(arguments: &CollectArguments, printer: Printer) -> Result<()> {
    let store = location::open(&arguments.store)?;
    let collected = store.collect(&CollectOptions {
        keep: arguments.keep,
        unused_for: arguments.unused_for,
        dry_run: arguments.dry_run,
    })?;
    let remains = Remains::find();
    let cgroups = if arguments.dry_run {
        remains.cgroups.len()
    } else {
        remains.remove().len()
    };
    if arguments.json {
        return printer.document(&Document {
            dry_run: arguments.dry_run,
            images: &collected.images,
            in_use: &collected.in_use,
            layers: collected.layers,
            blobs: collected.blobs,
            leftovers: collected.leftovers,
            bytes: collected.bytes,
            cgroups,
            stuck: &remains.stuck,
        });
    }
    for name in &collected.images {
        printer.data(&format!("{name}\n"))?;
    }
    for name in &collected.in_use {
        printer.note(&format!("{name} stays: a sandbox runs from it"));
    }
    if !remains.stuck.is_empty() {
        printer.note(&status::leak(&remains.stuck));
    }
    printer.note(&summary(&collected, cgroups, arguments.dry_run));
    Ok(())
}

fn summary(collected: &Collected, cgroups: usize, dry_run: bool) -> String {
    let parts = [
        (collected.images.len(), "image"),
        (collected.layers, "layer"),
        (collected.blobs, "document"),
        (collected.leftovers, "leftover"),
        (cgroups, "cgroup"),
    ];
    let parts = parts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, noun)| count(number, noun))
        .collect::<Vec<_>>();
    if parts.is_empty() {
        return "Nothing to remove".to_owned();
    }
    let verb = if dry_run { "Would remove" } else { "Removed" };
    format!(
        "{verb} {}: {}",
        parts.join(", "),
        format_size(collected.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_names_only_what_there_is() {
        let nothing = Collected::default();
        assert_eq!(summary(&nothing, 0, false), "Nothing to remove");
        let some = Collected {
            images: vec!["a".to_owned()],
            layers: 2,
            bytes: 3 << 20,
            ..Collected::default()
        };
        assert_eq!(
            summary(&some, 1, true),
            "Would remove 1 image, 2 layers, 1 cgroup: 3 MiB"
        );
    }
}
