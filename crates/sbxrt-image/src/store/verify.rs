//! Whether the store still holds what was pulled.
//!
//! A manifest or configuration is held against its digest. A layer is put together again as the archive that it was
//! unpacked from (see [`replay`](crate::replay)), which must hash to the `diff_id` that its image was signed with; what
//! that archive says of types, permissions and link targets is held against the files, and what it does not say must
//! not be there. A layer that was made here was never an archive: it is written as one once more (see
//! [`layer_writer`](crate::layer_writer)), which gives the same bytes as long as nothing has changed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::collect::Grip;
use super::record::choose;
use super::{Access, Record, Store, read_document, share};
use crate::digest::{Hasher, chain_ids};
use crate::layer_writer::{LayerOptions, write_layer};
use crate::scratch::Scratch;
use crate::tarball::{Entry, Kind, Skip, TarError, Tarball};
use crate::{Algorithm, Digest, Error, Limits, Result, replay};

/// How much is said of one thing that is damaged.
const REASONS: usize = 10;
/// Layers are read by so many threads: more wait for the disk only.
const THREADS: usize = 4;

/// What [`Store::verify`] has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many images were looked at.
    pub images: usize,
    /// How many manifests and configurations.
    pub blobs: usize,
    /// How many layers.
    pub layers: usize,
    /// The layers that cannot be put together again, since an entry of their archive replaces one before it, or since
    /// they were made here and the store was shared: only that they are there could be seen.
    pub unverifiable: Vec<Digest>,
    /// What is not as it was pulled.
    pub damaged: Vec<Damage>,
}

/// Something that is not as it was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What it is.
    pub object: Object,
    /// What is wrong with it; some of it where it is much.
    pub reasons: Vec<String>,
    /// The images that it belongs to.
    pub images: Vec<String>,
    /// Whether it was removed, and its images with it, so that the next pull gets them anew.
    pub removed: bool,
}

/// A thing that the store holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// What is known of an image, by its name.
    Image(String),
    /// A manifest or configuration.
    Blob(Digest),
    /// A layer, by its chain ID.
    Layer(Digest),
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(name) => write!(formatter, "image {name}"),
            Self::Blob(digest) => write!(formatter, "blob {digest}"),
            Self::Layer(chain_id) => write!(formatter, "layer {chain_id}"),
        }
    }
}

/// What becomes of things that are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// They stay.
    No,
    /// They are removed together with their images, so that the next pull gets them anew. What a sandbox runs from
    /// stays.
    Remove,
}

impl Store {
    /// Holds what the store has against what was pulled: all of it, or some images by name or digest.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownImage`] where a name is unknown, [`Error::Busy`] while another process removes images, or,
    /// where something is to be repaired, pulls. That something is damaged is no error.
    pub fn verify<S: AsRef<str>>(&self, names: &[S], repair: Repair) -> Result<Verified> {
        if !self.root.join("version").exists() {
            return match names.first() {
                Some(name) => Err(Error::UnknownImage {
                    name: name.as_ref().to_owned(),
                }),
                None => Ok(Verified::default()),
            };
        }
        let mut verified = {
            let _lock = self.lock(Access::Pull)?;
            self.examine(names)?
        };
        if repair == Repair::Remove && !verified.damaged.is_empty() {
            let _lock = self.lock(Access::Removal)?;
            for damage in &mut verified.damaged {
                damage.removed = self.remove_damaged(damage)?;
            }
        }
        Ok(verified)
    }

    fn examine<S: AsRef<str>>(&self, names: &[S]) -> Result<Verified> {
        let all = self.records()?;
        let mut paths = HashSet::new();
        for name in names {
            paths.extend(choose(&all, name.as_ref())?);
        }
        let is_wanted = |path: &PathBuf| names.is_empty() || paths.contains(path);
        let records = all
            .iter()
            .filter(|(path, _)| is_wanted(path))
            .map(|(_, record)| record)
            .collect::<Vec<_>>();
        let (mut blobs, mut layers) = if names.is_empty() {
            (self.contents("blobs")?, self.contents("layers")?)
        } else {
            (Vec::new(), Vec::new())
        };
        let mut faults = HashMap::<Object, Vec<String>>::new();
        for record in &records {
            blobs.extend([record.digest.clone(), record.config_digest.clone()]);
            layers.extend(record.layers.iter().cloned());
            let wrong = self.examine_record(record);
            if !wrong.is_empty() {
                faults.insert(Object::Image(record.name.clone()), wrong);
            }
        }
        // What an additional store has is its owner's to look at.
        let is_ours = |kind: &str, digest: &Digest| {
            self.existing(kind, digest, "") == self.content_path(kind, digest)
        };
        for (kind, digests) in [("blobs", &mut blobs), ("layers", &mut layers)] {
            digests.sort();
            digests.dedup();
            digests.retain(|digest| is_ours(kind, digest));
        }
        for digest in &blobs {
            if let Some(wrong) = self.examine_blob(digest) {
                faults.insert(Object::Blob(digest.clone()), vec![wrong]);
            }
        }
        if names.is_empty() {
            for (name, wrong) in self.unreadable_records()? {
                faults.insert(Object::Image(name), vec![wrong]);
            }
        }
        let mut unverifiable = Vec::new();
        for (chain_id, examined) in layers.iter().zip(self.examine_layers(&layers)) {
            match examined {
                Examined::Sound => {}
                Examined::Unverifiable => unverifiable.push(chain_id.clone()),
                Examined::Damaged(wrong) => {
                    faults.insert(Object::Layer(chain_id.clone()), wrong);
                }
            }
        }
        let mut damaged = faults
            .into_iter()
            .map(|(object, reasons)| Damage {
                images: names_of(&all, &object),
                object,
                reasons,
                removed: false,
            })
            .collect::<Vec<_>>();
        damaged.sort_by(|left, right| left.object.cmp(&right.object));
        Ok(Verified {
            images: records.len(),
            blobs: blobs.len(),
            layers: layers.len(),
            unverifiable,
            damaged,
        })
    }

    /// Records that nobody can read, by the names of their files: what they were called is not known.
    fn unreadable_records(&self) -> Result<Vec<(String, String)>> {
        let directory = self.root.join("images");
        let failed = |error| Error::io("list", &directory, error);
        let mut unreadable = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let wrong = match super::read_record(&entry.path()) {
                Ok(Some(_)) => continue,
                // Gone in between.
                Ok(None) if !entry.path().exists() => continue,
                Ok(None) => "its record cannot be read".to_owned(),
                Err(error) => format!("its record cannot be read: {}", with_cause(&error)),
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            unreadable.push((name, wrong));
        }
        Ok(unreadable)
    }

    /// Whether a record says what its documents say.
    fn examine_record(&self, record: &Record) -> Vec<String> {
        let mut wrong = Vec::new();
        let manifest = read_document(&self.existing("blobs", &record.digest, ""));
        let named = manifest.ok().and_then(|bytes| {
            let manifest = serde_json::from_slice::<serde_json::Value>(&bytes).ok()?;
            Some(manifest["config"]["digest"].as_str()?.to_owned())
        });
        if named.is_some_and(|named| named != record.config_digest.to_string()) {
            wrong.push("its configuration is not the one that its manifest names".to_owned());
        }
        let layers = record
            .layers
            .iter()
            .map(|layer| self.layer(layer))
            .collect::<Option<Vec<_>>>();
        let hidden = |layers: Vec<super::Layer>| {
            let topmost = layers.iter().rposition(|layer| layer.opaque);
            topmost.unwrap_or(0)
        };
        // Where a layer is missing, that is said of the layer.
        if layers.is_some_and(|layers| hidden(layers) != record.hidden_layers) {
            wrong.push("it leaves out other layers than those that one above hides".to_owned());
        }
        let config = read_document(&self.existing("blobs", &record.config_digest, ""));
        let config = config.ok().and_then(|bytes| {
            serde_json::from_slice::<oci_spec::image::ImageConfiguration>(&bytes).ok()
        });
        if let Some(config) = config {
            let diff_ids = config
                .rootfs()
                .diff_ids()
                .iter()
                .map(|text| text.parse::<Digest>())
                .collect::<Result<Vec<_>, _>>();
            if diff_ids.is_ok_and(|diff_ids| chain_ids(&diff_ids) != record.layers) {
                wrong.push("its layers are not those of its configuration".to_owned());
            }
            if config != record.config {
                wrong.push("its record is not its configuration".to_owned());
            }
        }
        wrong
    }

    fn examine_blob(&self, digest: &Digest) -> Option<String> {
        let path = self.blob_path(digest);
        match read_document(&path) {
            Err(error) => Some(format!("cannot be read: {error}")),
            Ok(bytes) => {
                let mut hasher = Hasher::new(digest.algorithm());
                hasher.update(&bytes);
                let actual = hasher.finish();
                (actual != *digest).then(|| format!("its digest is {actual}"))
            }
        }
    }

    fn examine_layers(&self, layers: &[Digest]) -> Vec<Examined> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let available = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..available.min(THREADS).min(layers.len()) {
                scope.spawn(|| {
                    while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed))
                        && let Some(chain_id) = layers.get(index)
                    {
                        let examined = self.examine_layer(chain_id);
                        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                        done.push((index, examined));
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, examined)| examined).collect()
    }

    fn examine_layer(&self, chain_id: &Digest) -> Examined {
        let path = self.content_path("layers", chain_id);
        let Some(layer) = self.own_layer(chain_id) else {
            let reason = if path.exists() {
                "its layer.json cannot be read"
            } else {
                "it is missing"
            };
            return Examined::Damaged(vec![reason.to_owned()]);
        };
        if !path.join("fs").is_dir() {
            return Examined::Damaged(vec!["its files are missing".to_owned()]);
        }
        match examine_stream(&path, layer.diff_id.algorithm()) {
            Err(reason) => Examined::Damaged(vec![reason]),
            Ok(None) if layer.made_here => self.examine_made(&path, &layer.diff_id),
            Ok(None) => Examined::Unverifiable,
            Ok(Some((actual, tree))) => {
                let mut wrong = Vec::new();
                if actual != layer.diff_id {
                    wrong.push(format!(
                        "its files have changed: their archive's digest is {actual} and not {}",
                        layer.diff_id
                    ));
                }
                let is_lowest = layer.diff_id == *chain_id;
                tree.compare(&path.join("fs"), is_lowest, self.is_shared, &mut wrong);
                if wrong.is_empty() {
                    Examined::Sound
                } else {
                    Examined::Damaged(wrong)
                }
            }
        }
    }

    /// Looks at a layer that was made here: its archive is written again, as it was when its digest was computed.
    fn examine_made(&self, path: &Path, diff_id: &Digest) -> Examined {
        let mut hashing = Hashing {
            inner: io::sink(),
            hasher: Hasher::new(diff_id.algorithm()),
        };
        if let Err(error) = write_layer(path, &LayerOptions::default(), &mut hashing) {
            return Examined::Damaged(vec![with_cause(&error)]);
        }
        let actual = hashing.hasher.finish();
        if actual == *diff_id {
            return Examined::Sound;
        }
        // Others may read files that were for their owner alone, and which those were is not written down.
        if self.is_shared {
            return Examined::Unverifiable;
        }
        Examined::Damaged(vec![format!(
            "its files have changed: their archive's digest is {actual} and not {diff_id}"
        )])
    }

    /// Removes something that is damaged, and the images it belongs to; `false` where a sandbox runs from one.
    fn remove_damaged(&self, damage: &Damage) -> Result<bool> {
        let records = self.records()?;
        let concerned = records
            .iter()
            .filter(|(_, record)| concerns(record, &damage.object))
            .collect::<Vec<_>>();
        let mut locks = Vec::new();
        for (_, record) in &concerned {
            match self.grip(&record.digest)? {
                Grip::Ours(lock) => locks.push(lock),
                Grip::InUse => return Ok(false),
            }
        }
        for (path, _) in &concerned {
            fs::remove_file(path).map_err(|error| Error::io("remove", path, error))?;
        }
        let is_unknown = concerned.is_empty();
        let path = match &damage.object {
            // A record that cannot be read is called like its file.
            Object::Image(name) if is_unknown => {
                let path = self.root.join("images").join(name);
                return match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(Error::io("remove", &path, error))
                    }
                    _ => Ok(true),
                };
            }
            Object::Image(_) => return Ok(true),
            Object::Blob(digest) => self.blob_path(digest),
            Object::Layer(chain_id) => self.content_path("layers", chain_id),
        };
        let trash = Scratch::unique(&self.tmp(), "removed")?;
        match fs::rename(&path, trash.path().join("damaged")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, error))
            }
            _ => Ok(true),
        }
    }
}

fn concerns(record: &Record, object: &Object) -> bool {
    match object {
        Object::Image(name) => record.name == *name,
        Object::Blob(digest) => record.digest == *digest || record.config_digest == *digest,
        Object::Layer(chain_id) => record.layers.contains(chain_id),
    }
}

fn names_of(records: &[(PathBuf, Record)], object: &Object) -> Vec<String> {
    let concerned = records
        .iter()
        .filter(|(_, record)| concerns(record, object));
    let mut names = concerned
        .map(|(_, record)| record.name.clone())
        .collect::<Vec<_>>();
    names.sort();
    names.dedup();
    names
}

/// What was found out of a layer.
#[derive(Debug)]
enum Examined {
    Sound,
    Unverifiable,
    Damaged(Vec<String>),
}

/// Reads a layer's archive: its digest, and the tree that it describes. `None` where it cannot be put together.
fn examine_stream(layer: &Path, algorithm: Algorithm) -> Result<Option<(Digest, Tree)>, String> {
    let opened = replay::open(layer).map_err(|error| with_cause(&error))?;
    let Some(stream) = opened else {
        return Ok(None);
    };
    let mut stream = Hashing {
        inner: stream,
        hasher: Hasher::new(algorithm),
    };
    let mut tree = Tree::default();
    let parsed = tree.read(&mut stream);
    // Whatever it is, the digest tells as well; but a file that cannot be read has a name.
    let rest = io::copy(&mut stream, &mut io::sink());
    parsed?;
    rest.map_err(|error| error.to_string())?;
    Ok(Some((stream.hasher.finish(), tree)))
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A stream whose bytes are hashed as they are read or written, and as they are passed over.
#[derive(Debug)]
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Skip for &mut Hashing<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut Read::by_ref(self).take(bytes), &mut io::sink())?;
        if passed < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// What a layer's archive says of its files, by path; the later entry counts.
#[derive(Debug, Default)]
struct Tree {
    entries: HashMap<Vec<u8>, Entry>,
    /// What the layer hides.
    whiteouts: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
}

impl Tree {
    fn read<R: Read>(&mut self, stream: &mut Hashing<R>) -> Result<(), String> {
        let mut tarball = Tarball::new(stream, Limits::default().header_bytes);
        loop {
            match tarball.next_entry() {
                Ok(Some(entry)) => self.take(entry),
                Ok(None) => return Ok(()),
                Err(TarError::Io(error)) => return Err(error.to_string()),
                Err(error) => return Err(format!("its archive is damaged: {error:?}")),
            }
        }
    }

    fn take(&mut self, entry: Entry) {
        let path = clean(&entry.path);
        let (parent, leaf) = split_leaf(&path);
        if leaf == b".wh..wh..opq" {
            self.opaque.insert(parent.to_vec());
        } else if leaf.starts_with(b".wh..wh.")
            || path
                .split(|byte| *byte == b'/')
                .any(|name| name.starts_with(b".wh..wh."))
        {
            // What aufs kept for itself is left out.
        } else if let Some(hidden) = leaf.strip_prefix(b".wh.") {
            self.whiteouts.insert(join(parent, hidden));
        } else {
            self.entries.insert(path, entry);
        }
    }

    /// Whether something on the way to a path is no directory in this layer, so that the path leads elsewhere.
    fn leads_elsewhere(&self, path: &[u8]) -> bool {
        let mut at = split_leaf(path).0;
        while !at.is_empty() {
            if self
                .entries
                .get(at)
                .is_some_and(|entry| entry.kind != Kind::Directory)
            {
                return true;
            }
            at = split_leaf(at).0;
        }
        false
    }

    fn compare(&self, root: &Path, is_lowest: bool, is_shared: bool, wrong: &mut Vec<String>) {
        let mut indirect = false;
        let mut say = |path: &[u8], what: String| {
            if wrong.len() < REASONS {
                wrong.push(format!("{}: {what}", String::from_utf8_lossy(path)));
            }
        };
        for (path, entry) in &self.entries {
            if self.leads_elsewhere(path) {
                indirect = true;
            } else if let Some(what) = differs(root, path, entry, is_shared) {
                say(path, what);
            }
        }
        if !is_lowest {
            let hidden = self
                .whiteouts
                .iter()
                .filter(|path| !self.entries.contains_key(*path) && !self.leads_elsewhere(path));
            for path in hidden {
                // A directory that only holds something takes the whiteout in another form.
                let found = fs::symlink_metadata(join_path(root, path));
                if found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    say(path, "the whiteout is missing".to_owned());
                }
            }
        }
        if !indirect {
            self.find_strangers(root, &mut say);
        }
    }

    /// Looks for files that the archive does not have.
    fn find_strangers(&self, root: &Path, say: &mut impl FnMut(&[u8], String)) {
        let mut known = HashSet::new();
        for path in self
            .entries
            .keys()
            .chain(&self.whiteouts)
            .chain(&self.opaque)
        {
            let mut at = path.as_slice();
            while !at.is_empty() && known.insert(at) {
                at = split_leaf(at).0;
            }
        }
        let mut waiting = vec![Vec::new()];
        while let Some(directory) = waiting.pop() {
            // What may not be listed is not looked into.
            let entries = fs::read_dir(join_path(root, &directory));
            for entry in entries.into_iter().flatten().flatten() {
                let path = join(&directory, entry.file_name().as_bytes());
                if !known.contains(path.as_slice()) {
                    say(&path, "it is not in the layer".to_owned());
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    waiting.push(path);
                }
            }
        }
    }
}

/// Says how a file is not what its entry says; its contents are told by the digest.
fn differs(root: &Path, path: &[u8], entry: &Entry, is_shared: bool) -> Option<String> {
    let found = match fs::symlink_metadata(join_path(root, path)) {
        Ok(found) => found,
        // It lies in a directory that even its owner may not search.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        Err(_)
            if matches!(
                entry.kind,
                Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo
            ) =>
        {
            return None;
        }
        Err(error) => return Some(error.to_string()),
    };
    let kind = found.file_type();
    let is_of_kind = match entry.kind {
        Kind::File => kind.is_file(),
        // To whatever: a link to a link is one.
        Kind::HardLink => !kind.is_dir(),
        Kind::Symlink => kind.is_symlink(),
        Kind::Directory => kind.is_dir(),
        Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => kind.is_char_device(),
    };
    if !is_of_kind {
        return Some("it is of another kind".to_owned());
    }
    let (permissions, may_have) = match entry.kind {
        Kind::File => (entry.mode & 0o1777, 0),
        // The kernel takes setgid away from a directory of a group that its owner is not in.
        Kind::Directory => (entry.mode & 0o1777, entry.mode & 0o6000),
        Kind::Symlink => {
            let target = fs::read_link(join_path(root, path)).unwrap_or_default();
            return (target.as_os_str().as_bytes() != entry.link)
                .then(|| format!("it leads to {}", target.display()));
        }
        _ => return None,
    };
    let expected = if is_shared {
        share::readable(permissions, kind.is_dir())
    } else {
        permissions
    };
    let actual = found.mode() & 0o7777 & !may_have;
    // Shared after it was pulled, or no more: both are as they should be.
    (actual != expected && actual != permissions)
        .then(|| format!("its mode is {actual:o} and not {expected:o}"))
}

/// Returns a path in the form that it has on disk.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            component => components.push(component),
        }
    }
    components.join(&b'/')
}

fn split_leaf(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

fn join(parent: &[u8], leaf: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return leaf.to_vec();
    }
    [parent, leaf].join(&b'/')
}

fn join_path(root: &Path, path: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(path))
}
