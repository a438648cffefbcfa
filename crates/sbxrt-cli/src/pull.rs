//! Getting images: `sbxrt pull`, and what `sbxrt run` does where an image is missing.

use sbxrt::image::Store;
use sbxrt::{Image, PullOptions, Source};

use crate::access;
use crate::args::{ProgressWhen, PullArguments, PullWhen};
use crate::diagnostics::Diagnostic;
use crate::error::Result;
use crate::images::Summary;
use crate::location;
use crate::printer::Printer;
use crate::progress::{Follower, Show};
use crate::signals::unless_interrupted;

/// Gets the images and prints their digests, or events in their place.
pub(crate) fn run(arguments: PullArguments, printer: Printer) -> Result<()> {
    let sources = arguments
        .images
        .iter()
        .map(|image| image.parse())
        .collect::<Result<Vec<Source>, _>>()?;
    let mut store = location::open(&arguments.store)?;
    if arguments.shared {
        store.share()?;
    }
    let mut options = PullOptions {
        plain_http: arguments.plain_http,
        offline: location::is_offline(arguments.offline),
        ..PullOptions::default()
    };
    if let Some(platform) = arguments.platform {
        options.platform = platform;
    }
    let show = Show::for_pull(arguments.progress, printer);
    let events = arguments.progress == ProgressWhen::Json;
    let mut images = Vec::new();
    for source in &sources {
        let image = pull(&store, source, &options, PullWhen::Always, show, printer)?;
        if !arguments.json && !events {
            let digest = image
                .digest
                .as_ref()
                .map_or_else(|| image.name.clone(), ToString::to_string);
            printer.data(&format!("{digest}\n"))?;
        }
        images.push(image);
    }
    if arguments.json {
        printer.document(
            &images
                .iter()
                .map(|image| Summary::new(image, None))
                .collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

/// Gets an image that a run needs. Standard error is the program's then, so only people are told.
pub(crate) fn for_run(
    store: &Store,
    source: &Source,
    options: &PullOptions,
    when: PullWhen,
    printer: Printer,
) -> Result<Image> {
    let show = Show::for_people(printer);
    pull(store, source, options, when, show, printer)
}

/// Gets an image and shows how it goes. A signal ends it, and then nothing unfinished is left.
fn pull(
    store: &Store,
    source: &Source,
    options: &PullOptions,
    when: PullWhen,
    show: Show,
    printer: Printer,
) -> Result<Image> {
    let options = match source {
        Source::Registry(_) if !options.offline => &access::equip(options.clone())?,
        _ => options,
    };
    let follower = Follower::new(source.to_string(), show, printer);
    let pulling = async {
        Ok(match when {
            PullWhen::Always => store.pull(source, options, &follower).await?,
            // However many runs miss the image at this moment, one of them gets it.
            _ => store.find_or_pull(source, options, &follower).await?,
        })
    };
    unless_interrupted(pulling, |pulled| match pulled {
        Ok(image) => follower.done(image),
        Err(error) => follower.failed(&Diagnostic::new(error)),
    })
}
