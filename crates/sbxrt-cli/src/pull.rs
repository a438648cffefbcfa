//! Getting images: `sbxrt pull`, and what `sbxrt run` does where an image is missing.

use std::time::Duration;

use sbxrt::image::Store;
use sbxrt::{Image, PullOptions, Source};

use crate::access;
use crate::args::{ProgressWhen, PullArguments, PullWhen};
use crate::diagnostics::Diagnostic;
use crate::error::{Error, Result};
use crate::images::Summary;
use crate::location;
use crate::printer::Printer;
use crate::progress::{Follower, Show};
use crate::signals::Signals;

/// How long what was interrupted may take to clean up.
const GRACE: Duration = Duration::from_secs(2);

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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            step: "start the runtime",
            source,
        })?;
    let options = match source {
        Source::Registry(_) if !options.offline => &access::equip(options.clone())?,
        _ => options,
    };
    let follower = Follower::new(source.to_string(), show, printer);
    let pulled: Result<Image> = runtime.block_on(async {
        let mut signals = Signals::ending()?;
        let pulling = async {
            match when {
                PullWhen::Always => store.pull(source, options, &follower).await,
                // However many runs miss the image at this moment, one of them gets it.
                _ => store.find_or_pull(source, options, &follower).await,
            }
        };
        tokio::select! {
            pulled = pulling => Ok(pulled?),
            signal = signals.next() => Err(Error::Interrupted { signal }),
        }
    });
    match &pulled {
        Ok(image) => follower.done(image),
        Err(error) => follower.failed(&Diagnostic::new(error)),
    }
    // Layers are unpacked by threads, which notice that nobody wants them any more.
    runtime.shutdown_timeout(GRACE);
    pulled
}
