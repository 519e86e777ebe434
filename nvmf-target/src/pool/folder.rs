//! A folder of objects, each a file of blocks and a record, and the order of steps that keeps it whole.
//!
//! Making: the blocks under a hidden name, made durable; the record under a hidden name, made durable; the record renamed to its
//! name, the folder made durable (*from here on it exists*); the blocks renamed. Removing: the blocks renamed to the hidden name; the
//! record unlinked, the folder made durable (*from here on it is gone*); the blocks unlinked. Opening finds one of these states after a crash:
//!
//! | record | blocks | what it was | what is done |
//! |---|---|---|---|
//! | there | under their name | whole | nothing |
//! | there | hidden | nearly made, or hardly begun to be removed | the blocks are renamed |
//! | there | missing | none of ours | said; the name is damaged |
//! | missing | hidden | half made, or removed | the blocks are unlinked |
//! | missing | under a name | none of ours | said; left alone |
//!
//! A group of records becomes real at once through one file that holds them all ([`Folder::publish_group`]).

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use uuid::Uuid;

use super::error::PoolError;
use super::record::{RECORD_VERSION, Record};
use super::step::step;

/// A record is a page or two; a file of more is none.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// A folder of objects.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    dir: File,
}

/// Blocks on their way in. Unlinked when dropped before they are published.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) id: Uuid,
    pub(super) file: File,
    path: PathBuf,
    published: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), "cannot be removed ({error}); the next start will");
        }
    }
}

/// What opening a folder found.
#[derive(Debug)]
pub(super) struct Found<R> {
    /// What is whole.
    pub(super) records: BTreeMap<String, R>,
    /// Names that are taken by something that is not whole, and why.
    pub(super) damaged: BTreeMap<String, String>,
    /// What was repaired, in words.
    pub(super) repairs: Vec<String>,
}

/// Wraps errors of the file `path`.
pub(super) fn failed<'a>(
    path: &'a Path,
    action: &'static str,
) -> impl Fn(io::Error) -> PoolError + 'a {
    move |error| PoolError::System {
        path: path.to_owned(),
        action,
        error,
    }
}

impl Folder {
    /// Opens the folder `path`, which is made when missing; making it durable is the caller's.
    pub(super) fn open(path: PathBuf) -> Result<Self, PoolError> {
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&path, "making it")(error));
            }
            _ => {}
        }
        let dir = File::open(&path).map_err(failed(&path, "opening it"))?;
        Ok(Folder { path, dir })
    }

    /// Where the blocks of `name` are.
    pub(super) fn blocks(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.raw"))
    }

    fn record(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.json"))
    }

    fn hidden(&self, id: Uuid, extension: &str) -> PathBuf {
        self.path.join(format!(".{id}.{extension}"))
    }

    fn sync(&self) -> Result<(), PoolError> {
        self.dir
            .sync_all()
            .map_err(failed(&self.path, "making it durable"))
    }

    /// Makes the file for the blocks of a new object.
    pub(super) fn draft(&self, id: Uuid) -> Result<Draft, PoolError> {
        let path = self.hidden(id, "raw");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed(&path, "making it"))?;
        step("the blocks have a hidden name");
        Ok(Draft {
            id,
            file,
            path,
            published: false,
        })
    }

    fn write_hidden(&self, id: Uuid, content: &[u8]) -> Result<PathBuf, PoolError> {
        let path = self.hidden(id, "json");
        let written = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            step("the record has a hidden name");
            file.write_all(content)?;
            step("the record is written");
            file.sync_all()
        };
        match written() {
            Ok(()) => Ok(path),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(failed(&path, "writing it")(error))
            }
        }
    }

    /// Makes the object of a draft exist.
    pub(super) fn publish<R: Record>(&self, mut draft: Draft, record: &R) -> Result<(), PoolError> {
        let durable = draft.file.sync_all();
        durable.map_err(failed(&draft.path, "making it durable"))?;
        step("the blocks are durable");
        let hidden = self.write_hidden(draft.id, &encode(record))?;
        step("the record is durable");
        let name = self.record(record.name());
        let renamed = renameat_with(CWD, &hidden, CWD, &name, RenameFlags::NOREPLACE);
        if let Err(errno) = renamed {
            let _ = fs::remove_file(&hidden);
            return Err(failed(&name, "giving the record its name")(errno.into()));
        }
        step("the record has its name");
        if let Err(error) = self.sync() {
            // Whether it exists on disk is open; in this process it does not.
            let _ = fs::remove_file(&name);
            return Err(error);
        }
        draft.published = true;
        step("the object exists");
        self.reveal(draft.id, record.name())
    }

    /// Renames hidden blocks to their name.
    fn reveal(&self, id: Uuid, name: &str) -> Result<(), PoolError> {
        let to = self.blocks(name);
        let renamed = renameat_with(
            CWD,
            self.hidden(id, "raw"),
            CWD,
            &to,
            RenameFlags::NOREPLACE,
        );
        renamed.map_err(|errno| failed(&to, "giving the blocks their name")(errno.into()))?;
        step("the blocks have their name");
        Ok(())
    }

    /// Makes the objects of all drafts exist, or of none. One file with all records is what decides; the single records follow, and a
    /// start after a crash finishes that.
    pub(super) fn publish_group<R: Record>(
        &self,
        group: Uuid,
        drafts: Vec<Draft>,
        records: &[R],
    ) -> Result<(), PoolError> {
        for draft in &drafts {
            let durable = draft.file.sync_all();
            durable.map_err(failed(&draft.path, "making it durable"))?;
        }
        step("the blocks of the group are durable");
        let hidden = self.write_hidden(group, &encode(records))?;
        step("the records of the group are durable");
        let commit = self.hidden(group, "commit");
        if let Err(error) = fs::rename(&hidden, &commit) {
            let _ = fs::remove_file(&hidden);
            return Err(failed(&commit, "making the group exist")(error));
        }
        step("the records of the group have their name");
        if let Err(error) = self.sync() {
            let _ = fs::remove_file(&commit);
            return Err(error);
        }
        drafts
            .into_iter()
            .for_each(|mut draft| draft.published = true);
        step("the group exists");
        self.unfold(group, records)
    }

    /// From a group to single objects. Can be repeated from any point.
    fn unfold<R: Record>(&self, group: Uuid, records: &[R]) -> Result<(), PoolError> {
        for record in records {
            self.replace(record)?;
            if self.hidden(record.id(), "raw").exists() {
                self.reveal(record.id(), record.name())?;
            }
        }
        let commit = self.hidden(group, "commit");
        fs::remove_file(&commit).map_err(failed(&commit, "removing it"))?;
        step("the group is single objects");
        self.sync()
    }

    /// Puts a record in the place of the one with its name, if there is one: old or new, never half.
    pub(super) fn replace<R: Record>(&self, record: &R) -> Result<(), PoolError> {
        let hidden = self.write_hidden(record.id(), &encode(record))?;
        step("the new record is durable");
        let name = self.record(record.name());
        fs::rename(&hidden, &name).map_err(failed(&name, "replacing it"))?;
        step("the new record has its name");
        self.sync()
    }

    /// Makes an object exist no more. Its blocks go with [`Removed::reclaim`].
    pub(super) fn remove<R: Record>(&self, record: &R) -> Result<Removed, PoolError> {
        let (blocks, hidden) = (self.blocks(record.name()), self.hidden(record.id(), "raw"));
        match fs::rename(&blocks, &hidden) {
            Ok(()) => {}
            // An earlier attempt came this far.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&blocks, "hiding it")(error)),
        }
        step("the blocks are hidden");
        let name = self.record(record.name());
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let _ = fs::rename(&hidden, &blocks);
                return Err(failed(&name, "removing it")(error));
            }
            _ => {}
        }
        step("the record is gone");
        self.sync()?;
        step("the object is gone");
        Ok(Removed(hidden))
    }

    /// Reads everything, and finishes or undoes what was under way.
    pub(super) fn recover<R: Record>(&self) -> Result<Found<R>, PoolError> {
        let mut found = Found {
            records: BTreeMap::new(),
            damaged: BTreeMap::new(),
            repairs: Vec::new(),
        };
        self.recover_groups::<R>(&mut found)?;
        let mut hidden = Vec::new();
        let mut blocks = Vec::new();
        for name in self.names()? {
            if let Some(visible) = name.strip_prefix('.') {
                hidden.extend(ours(visible).map(|id| (id, name.clone())));
            } else if let Some(object) = name.strip_suffix(".json") {
                match self.load::<R>(object) {
                    Ok(record) => drop(found.records.insert(object.to_owned(), record)),
                    Err(why) => drop(found.damaged.insert(object.to_owned(), why)),
                }
            } else if let Some(object) = name.strip_suffix(".raw") {
                blocks.push(object.to_owned());
            }
        }
        for object in blocks {
            if !found.records.contains_key(&object) && !found.damaged.contains_key(&object) {
                let path = self.blocks(&object);
                let why = "there are blocks but no record, which this program never leaves";
                tracing::warn!(path = %path.display(), "{why}; the file is left alone");
                found.damaged.insert(object, why.to_owned());
            }
        }
        // A record that cannot be read may be the one that hidden blocks belong to.
        let readable = found.damaged.is_empty();
        self.match_blocks(&mut found)?;
        for (id, name) in hidden {
            if !readable && name.ends_with(".raw") {
                tracing::warn!(path = %self.path.join(&name).display(), "may belong to a damaged record; left alone");
                continue;
            }
            if found.records.values().any(|record| record.id() == id) && name.ends_with(".raw") {
                continue;
            }
            let path = self.path.join(&name);
            match fs::remove_file(&path) {
                // A repair used the name for itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                removed => removed.map_err(failed(&path, "removing it"))?,
            }
            found.repairs.push(format!(
                "removed {}, which was half made or half removed",
                path.display()
            ));
        }
        self.sync()?;
        Ok(found)
    }

    /// Finishes groups that exist.
    fn recover_groups<R: Record>(&self, found: &mut Found<R>) -> Result<(), PoolError> {
        for name in self.names()? {
            let id = name
                .strip_prefix('.')
                .and_then(|n| n.strip_suffix(".commit"));
            let Some(group) = id.and_then(|id| Uuid::parse_str(id).ok()) else {
                continue;
            };
            let path = self.path.join(&name);
            let records: Vec<R> = read(&path)
                .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
                .map_err(|why| PoolError::Unusable {
                    path: path.clone(),
                    why: format!("the records of a group of snapshots cannot be read: {why}"),
                })?;
            self.unfold(group, &records)?;
            found
                .repairs
                .push(format!("finished a group of {} snapshots", records.len()));
        }
        Ok(())
    }

    /// Sees that each record has its blocks, of the right size.
    fn match_blocks<R: Record>(&self, found: &mut Found<R>) -> Result<(), PoolError> {
        let mut without = Vec::new();
        for (name, record) in &mut found.records {
            let blocks = self.blocks(name);
            if !blocks.exists() && self.hidden(record.id(), "raw").exists() {
                self.reveal(record.id(), name)?;
                found
                    .repairs
                    .push(format!("gave {} its name back", blocks.display()));
            }
            let size = match fs::metadata(&blocks) {
                Ok(metadata) => metadata.len(),
                Err(error) => {
                    without.push((name.clone(), format!("{}: {error}", blocks.display())));
                    continue;
                }
            };
            let whole = size - size % u64::from(record.block_bytes());
            if size < record.size_bytes() {
                let why = format!(
                    "{} has {size} bytes, its record says {}: it was truncated; give it its size again (truncate -s) if the rest may read as zeroes",
                    blocks.display(),
                    record.size_bytes()
                );
                without.push((name.clone(), why));
            } else if whole > record.size_bytes() {
                // Growing was under way: the file first, then the record.
                record.set_size_bytes(whole);
                self.replace(record)?;
                found.repairs.push(format!(
                    "{} had been grown to {whole} bytes, now its record says so",
                    blocks.display()
                ));
            }
        }
        for (name, why) in without {
            found.records.remove(&name);
            found.damaged.insert(name, why);
        }
        Ok(())
    }

    fn load<R: Record>(&self, name: &str) -> Result<R, String> {
        let path = self.record(name);
        let parsed = read(&path)
            .and_then(|text| serde_json::from_slice::<R>(&text).map_err(|error| error.to_string()))
            .map_err(|why| format!("{}: {why}", path.display()))?;
        if parsed.version() > RECORD_VERSION {
            return Err(format!(
                "{} was written by a newer version of this program (format {}); use that",
                path.display(),
                parsed.version()
            ));
        }
        if parsed.name() != name || !matches!(parsed.block_bytes(), 512 | 4096) {
            return Err(format!(
                "{} does not belong to this name, or has no valid block size",
                path.display()
            ));
        }
        Ok(parsed)
    }

    fn names(&self) -> Result<Vec<String>, PoolError> {
        let listing = fs::read_dir(&self.path)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .map_err(failed(&self.path, "listing it"))?;
        let names = listing.into_iter().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    }
}

/// The identity in a hidden name without its dot: only such names are ever unlinked without a record.
fn ours(name: &str) -> Option<Uuid> {
    let id = name
        .strip_suffix(".raw")
        .or_else(|| name.strip_suffix(".json"))?;
    Uuid::parse_str(id).ok()
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let read = || {
        if fs::metadata(path)?.len() > MAX_RECORD_BYTES {
            return Err(io::Error::other("far too long for a record"));
        }
        fs::read(path)
    };
    read().map_err(|error| error.to_string())
}

fn encode<R: serde::Serialize + ?Sized>(record: &R) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(record).expect("records have only strings as keys");
    text.push(b'\n');
    text
}

/// Blocks of something that exists no more.
#[derive(Debug)]
pub struct Removed(PathBuf);

impl Removed {
    /// Gives the space back. Blocks, for as long as the file system takes for all extents; the next start does what this did not.
    pub fn reclaim(self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.0.display(), "cannot be removed ({error}); its space is lost until the next start");
        }
        step("the blocks are gone");
    }
}
