//! Taking things out of the store: `rmi` and `gc`.
//!
//! An image that a sandbox runs from is never taken away: whoever runs it has its manifest open with a shared lock. Its
//! name may go, by force or since the tag has moved on; its files then stay until the last sandbox has ended.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::lease::{self, Lock};
use super::record::choose;
use super::{Access, Record, Store, read_document, referenced, usage};
use crate::digest::chain_ids;
use crate::scratch::{self, Scratch};
use crate::{Digest, Error, Result};

/// What [`Store::remove`] has removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The names of the images.
    pub images: Vec<String>,
    /// How many layers went with them, since no other image has them.
    pub layers: usize,
    /// The bytes of those layers.
    pub bytes: u64,
}

/// What [`Store::collect`] may remove beyond what no image needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CollectOptions {
    /// Removes images, the least recently used first, until the layers of those that are left are not larger together.
    /// Default: any size.
    pub keep: Option<u64>,
    /// Removes images that were not used for so long. Default: any time.
    pub unused_for: Option<Duration>,
    /// Only says what would be removed.
    pub dry_run: bool,
}

/// What [`Store::collect`] has removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// The names of the images, the least recently used first.
    pub images: Vec<String>,
    /// The images that should have gone but that sandboxes run from.
    pub in_use: Vec<String>,
    /// How many layers went.
    pub layers: usize,
    /// How many manifests and configurations went.
    pub blobs: usize,
    /// How many things that processes which died had left.
    pub leftovers: usize,
    /// The bytes of all that.
    pub bytes: u64,
}

impl Store {
    /// Removes the images of a name (for all platforms), or the image of a manifest or configuration digest, of which
    /// at least the first six digits must be given. Layers that no other image has go too.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownImage`] where there is none, [`Error::AmbiguousDigest`] where a short digest fits several,
    /// [`Error::ImageInUse`] while a sandbox runs from it, [`Error::Busy`] while another process pulls.
    pub fn remove(&self, name_or_digest: &str) -> Result<Removed> {
        self.remove_chosen(name_or_digest, false)
    }

    /// Removes images as [`remove`](Self::remove) does, even if sandboxes run from them. Their names go now; their
    /// files stay as long as they are used, and go with the next [`collect`](Self::collect) or `remove` after that.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), except [`Error::ImageInUse`].
    pub fn remove_used(&self, name_or_digest: &str) -> Result<Removed> {
        self.remove_chosen(name_or_digest, true)
    }

    fn remove_chosen(&self, name_or_digest: &str, even_if_used: bool) -> Result<Removed> {
        self.make()?;
        let _lock = self.lock(Access::Removal)?;
        let (chosen, rest) = {
            let records = self.records()?;
            let chosen = choose(&records, name_or_digest)?;
            records
                .into_iter()
                .partition::<Vec<_>, _>(|(path, _)| chosen.contains(path))
        };
        let needed = referenced(rest.iter().map(|(_, record)| record));
        let mut locks = Vec::new();
        for (_, record) in &chosen {
            // What has another name is not in danger.
            if needed.contains(&record.digest) || even_if_used {
                continue;
            }
            match self.grip(&record.digest)? {
                Grip::Ours(lock) => locks.push(lock),
                Grip::InUse => {
                    return Err(Error::ImageInUse {
                        image: record.name.clone(),
                    });
                }
            }
        }
        let mut removed = Removed::default();
        for (path, record) in chosen {
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            removed.images.push(record.name);
        }
        drop(locks);
        let rest = self.remove_unneeded(needed, false)?;
        (removed.layers, removed.bytes) = (rest.layers, rest.layer_bytes);
        removed.images.sort();
        removed.images.dedup();
        Ok(removed)
    }

    /// Removes what no image needs and what processes that died have left, and images that are too old or too many.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another process pulls.
    pub fn collect(&self, options: &CollectOptions) -> Result<Collected> {
        if !self.root.join("version").exists() {
            return Ok(Collected::default());
        }
        let _lock = self.lock(Access::Removal)?;
        let mut collected = Collected::default();
        self.collect_leftovers(options.dry_run, &mut collected)?;
        let mut records = self.by_last_use()?;
        let now = SystemTime::now();
        let mut total = self.size_of_layers(records.iter().map(|used| &used.record));
        let mut index = 0;
        while index < records.len() {
            let used = &records[index];
            let age = now.duration_since(used.last_use).unwrap_or_default();
            let too_old = options.unused_for.is_some_and(|limit| age > limit);
            let too_much = options.keep.is_some_and(|limit| total > limit);
            if !too_old && !too_much {
                index += 1;
                continue;
            }
            let others = records.iter().enumerate();
            let has_another_name = others
                .filter(|(other, _)| *other != index)
                .any(|(_, other)| other.record.digest == used.record.digest);
            let lock = if has_another_name {
                None
            } else {
                match self.grip(&used.record.digest)? {
                    Grip::Ours(lock) => lock,
                    Grip::InUse => {
                        collected.in_use.push(used.record.name.clone());
                        index += 1;
                        continue;
                    }
                }
            };
            let used = records.remove(index);
            if !options.dry_run {
                fs::remove_file(&used.path)
                    .map_err(|error| Error::io("remove", &used.path, error))?;
            }
            drop(lock);
            collected.images.push(used.record.name);
            total = self.size_of_layers(records.iter().map(|used| &used.record));
        }
        let needed = referenced(records.iter().map(|used| &used.record));
        let rest = self.remove_unneeded(needed, options.dry_run)?;
        if !options.dry_run {
            self.prune_cache()?;
        }
        collected.layers = rest.layers;
        collected.blobs = rest.blobs;
        collected.bytes = [rest.layer_bytes, rest.blob_bytes]
            .into_iter()
            .fold(collected.bytes, u64::saturating_add);
        Ok(collected)
    }

    /// Removes documents that a pull has put in and that no image needs.
    pub(crate) fn forget(&self, digests: &[Digest]) -> Result<()> {
        let _lock = self.lock(Access::Removal)?;
        let records = self.records()?;
        let needed = referenced(records.iter().map(|(_, record)| record));
        for digest in digests.iter().filter(|digest| !needed.contains(digest)) {
            if let Grip::Ours(_lock) = self.grip(digest)? {
                let path = self.blob_path(digest);
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        Ok(())
    }

    fn collect_leftovers(&self, dry_run: bool, collected: &mut Collected) -> Result<()> {
        scratch::for_each_abandoned(&self.tmp(), |path, _| {
            collected.leftovers += 1;
            collected.bytes += usage::on_disk(path);
            Ok(())
        })?;
        if dry_run {
            return Ok(());
        }
        self.sweep()
    }

    /// The records, the least recently used first.
    fn by_last_use(&self) -> Result<Vec<Used>> {
        let mut records = Vec::new();
        for (path, record) in self.records()? {
            let last_use = fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .map_err(|error| Error::io("stat", &path, error))?;
            records.push(Used {
                path,
                record,
                last_use,
            });
        }
        records.sort_by(|left, right| {
            (left.last_use, &left.record.name).cmp(&(right.last_use, &right.record.name))
        });
        Ok(records)
    }

    fn size_of_layers<'a>(&self, records: impl Iterator<Item = &'a Record>) -> u64 {
        let layers = records
            .flat_map(|record| &record.layers)
            .collect::<HashSet<_>>();
        let sizes = layers
            .into_iter()
            .filter_map(|layer| self.own_layer(layer))
            .map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Takes the lock of an image's manifest, with which nobody can begin to use the image.
    pub(super) fn grip(&self, digest: &Digest) -> Result<Grip> {
        let path = self.blob_path(digest);
        let Ok(file) = File::options().read(true).write(true).open(&path) else {
            // Without a manifest it cannot be used.
            return Ok(Grip::Ours(None));
        };
        match lease::try_lock(&file).map_err(|error| Error::io("lock", &path, error))? {
            Lock::Busy => Ok(Grip::InUse),
            Lock::Taken | Lock::Missing => Ok(Grip::Ours(Some(file))),
        }
    }

    /// Removes layers and documents that are not `needed`, by records or by those who run something.
    fn remove_unneeded(&self, mut needed: HashSet<Digest>, dry_run: bool) -> Result<Unneeded> {
        let mut removed = Unneeded::default();
        let mut blobs = HashMap::new();
        for digest in self.contents("blobs")? {
            if needed.contains(&digest) {
                continue;
            }
            match self.grip(&digest)? {
                // Held until all is removed.
                Grip::Ours(lock) => drop(blobs.insert(digest, lock)),
                Grip::InUse => {
                    needed.extend(self.layers_of(&digest));
                    needed.insert(digest);
                }
            }
        }
        let trash = Scratch::unique(&self.tmp(), "removed")?;
        for digest in self.contents("layers")? {
            if needed.contains(&digest) {
                continue;
            }
            removed.layers += 1;
            let bytes = self.own_layer(&digest).map_or(0, |layer| layer.size);
            removed.layer_bytes = removed.layer_bytes.saturating_add(bytes);
            if !dry_run {
                // Renamed first: a layer is there as a whole or not at all.
                let path = self.content_path("layers", &digest);
                fs::rename(&path, trash.path().join(digest.hex()))
                    .map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        for digest in blobs.keys().filter(|digest| !needed.contains(digest)) {
            let path = self.blob_path(digest);
            removed.blobs += 1;
            removed.blob_bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
            if !dry_run {
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        Ok(removed)
    }

    /// Returns what an image of which only the manifest is known needs.
    fn layers_of(&self, manifest: &Digest) -> Vec<Digest> {
        #[derive(Deserialize)]
        struct Manifest {
            config: Descriptor,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: Digest,
        }
        #[derive(Deserialize)]
        struct Configuration {
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            diff_ids: Vec<Digest>,
        }
        let read = |digest: &Digest| read_document(&self.blob_path(digest)).ok();
        let Some(manifest) =
            read(manifest).and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok())
        else {
            return Vec::new();
        };
        let config = manifest.config.digest;
        let mut digests = read(&config)
            .and_then(|bytes| serde_json::from_slice::<Configuration>(&bytes).ok())
            .map(|configuration| chain_ids(&configuration.rootfs.diff_ids))
            .unwrap_or_default();
        digests.push(config);
        digests
    }

    /// Returns what is known of a layer of this store.
    pub(super) fn own_layer(&self, chain_id: &Digest) -> Option<super::Layer> {
        let path = self.content_path("layers", chain_id).join("layer.json");
        serde_json::from_slice(&read_document(&path).ok()?).ok()
    }
}

/// Who has the lock of an image's manifest.
#[derive(Debug)]
pub(super) enum Grip {
    /// We do, until the file is closed; there is none where the manifest is missing.
    Ours(Option<File>),
    /// Somebody who uses the image.
    InUse,
}

/// What nobody needed.
#[derive(Debug, Default)]
struct Unneeded {
    layers: usize,
    layer_bytes: u64,
    blobs: usize,
    blob_bytes: u64,
}

/// A record and when its image was last used.
#[derive(Debug)]
struct Used {
    path: PathBuf,
    record: Record,
    last_use: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a process on another machine writes into its lease.
    const ELSEWHERE: &str =
        r#"{"host":"node7","boot_id":"another","pid_namespace":"pid:[1]","pid":1,"started":1}"#;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        store.make().unwrap();
        (directory, store)
    }

    fn age(path: &std::path::Path, age: Duration) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn nothing_is_removed_while_another_machine_pulls() {
        let (_directory, store) = store();
        let lease = store.tmp().join("pull-0123456789ab-1-0");
        fs::write(&lease, ELSEWHERE).unwrap();
        let options = CollectOptions::default();
        assert!(matches!(store.collect(&options), Err(Error::Busy { .. })));
        age(&lease, lease::GONE * 2);
        assert!(store.collect(&options).is_ok());
        // Nobody but that machine knows whether it is dead, until an hour has gone.
        assert!(lease.exists());
        age(&lease, lease::ABANDONED * 2);
        assert_eq!(store.collect(&options).unwrap().leftovers, 1);
        assert!(!lease.exists());
    }

    #[test]
    fn nothing_is_pulled_while_another_machine_removes() {
        let (_directory, store) = store();
        let claim = store.tmp().join(super::super::REMOVAL_CLAIM);
        fs::write(&claim, ELSEWHERE).unwrap();
        assert!(matches!(store.lock(Access::Pull), Err(Error::Busy { .. })));
        assert_eq!(
            fs::read_dir(store.tmp()).unwrap().count(),
            1,
            "who gives way leaves nothing"
        );
        age(&claim, lease::GONE * 2);
        assert!(store.lock(Access::Pull).is_ok());
    }

    #[test]
    fn one_machine_pulls_often_at_once_and_removes_alone() {
        let (_directory, store) = store();
        let first = store.lock(Access::Pull).unwrap();
        let second = store.lock(Access::Pull).unwrap();
        assert!(matches!(
            store.lock(Access::Removal),
            Err(Error::Busy { .. })
        ));
        drop((first, second));
        let removal = store.lock(Access::Removal).unwrap();
        assert!(matches!(store.lock(Access::Pull), Err(Error::Busy { .. })));
        drop(removal);
        assert_eq!(fs::read_dir(store.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_sandbox_runs_from_is_kept_by_its_manifest_alone() {
        let (_directory, store) = store();
        let diff_ids = [Digest::of(b"one"), Digest::of(b"two")];
        let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = serde_json::json!({"config": {"digest": Digest::of(&config)}});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        for document in [&config, &manifest] {
            store.put_blob(&Digest::of(document), document).unwrap();
        }
        for layer in chain_ids(&diff_ids) {
            fs::create_dir(store.content_path("layers", &layer)).unwrap();
        }
        fs::create_dir(store.content_path("layers", &Digest::of(b"other"))).unwrap();
        let hold = store.hold(&Digest::of(&manifest)).unwrap().unwrap();
        let collected = store.collect(&CollectOptions::default()).unwrap();
        assert_eq!((collected.layers, collected.blobs), (1, 0));
        drop(hold);
        let collected = store.collect(&CollectOptions::default()).unwrap();
        assert_eq!((collected.layers, collected.blobs), (2, 2));
    }
}
