//! The durable store: keys and JSON values, in transactions.
//!
//! A small trait, so that a cluster-wide store can take the place of the embedded one.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;

use crate::kernel::links::At;

/// The layout of keys and values. A store of another version is refused, never guessed at.
const SCHEMA: u64 = 1;
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Why the store does not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("another worker is using {}; only one can", path.display())]
    InUse { path: PathBuf },
    #[error("{} cannot be opened: {reason}", path.display())]
    Unusable { path: PathBuf, reason: String },
    #[error("{} is of schema {found}, this worker reads {SCHEMA}", path.display())]
    OtherSchema { path: PathBuf, found: u64 },
    #[error("the state cannot be written: {0}")]
    Unwritable(String),
    #[error("the state cannot be read: {0}")]
    Unreadable(String),
}

/// One key of a change: its new value, or `None` to remove it.
pub type Entry = (String, Option<Value>);

/// Keys and JSON values. May block for the time of an fsync.
pub trait Store: Send + Sync + fmt::Debug {
    /// Everything, by key.
    fn load(&self) -> Result<BTreeMap<String, Value>, StoreError>;

    /// The entries of every change, in order, or of none; durable when it returns.
    fn commit(&self, changes: &[Vec<Entry>]) -> Result<(), StoreError>;

    /// Notes the links that are made next, in place of those noted before. Outlives this process but not the
    /// machine's next start, as links do.
    fn note_making(&self, links: &[At]) -> Result<(), StoreError>;

    /// The links that were noted last.
    fn making(&self) -> Vec<At>;
}

/// The embedded store, `STATE_DIR/state.redb`. The file is locked while it is open.
#[derive(Debug)]
pub struct RedbStore {
    path: PathBuf,
    held: Mutex<Held>,
    /// Not in the database, whose commits cost an fsync.
    making: PathBuf,
}

#[derive(Debug, Default)]
struct Held {
    /// `None` after a write that failed: redb then refuses everything until the file is opened anew.
    database: Option<Database>,
    /// What the keys of a commit had before that was refused to its caller, and yet may be in the file: whoever cannot sync has
    /// written. It is taken back before anything else is done.
    doubt: Values,
}

type Values = BTreeMap<String, Option<Vec<u8>>>;

impl RedbStore {
    /// Opens the store of a state directory, and makes both when they are missing.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let path = state_dir.join("state.redb");
        let unusable = |reason: String| StoreError::Unusable { path: path.clone(), reason };
        std::fs::create_dir_all(state_dir).map_err(|error| unusable(error.to_string()))?;
        let database = open(&path)?;
        let schema = prepare(&database).map_err(|error| unusable(error.to_string()))?;
        if schema != SCHEMA {
            return Err(StoreError::OtherSchema { path, found: schema });
        }
        let held = Held { database: Some(database), doubt: Values::new() };
        Ok(Self { making: state_dir.join("making.json"), path, held: Mutex::new(held) })
    }

    /// Does something with the database, which is opened anew if the last time failed.
    fn with<T>(
        &self,
        task: impl FnOnce(&Database, &mut Values) -> Result<T, redb::Error>,
        failed: fn(String) -> StoreError,
    ) -> Result<T, StoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Held { database, doubt } = &mut *held;
        let open = match database.take() {
            Some(open) => open,
            None => {
                let open = open(&self.path).map_err(|error| failed(error.to_string()))?;
                take_back(&open, doubt).map_err(|error| failed(error.to_string()))?;
                open
            }
        };
        let done = task(&open, doubt);
        if done.is_ok() {
            *database = Some(open);
        }
        done.map_err(|error| failed(error.to_string()))
    }
}

fn take_back(database: &Database, doubt: &mut Values) -> Result<(), redb::Error> {
    if !doubt.is_empty() {
        let before = doubt.clone();
        let entries: Vec<_> = before.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        // Should it fail, the same is in doubt as before.
        write_all(database, &entries, &mut Values::new())?;
        doubt.clear();
    }
    Ok(())
}

fn open(path: &Path) -> Result<Database, StoreError> {
    Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        other => StoreError::Unusable { path: path.to_owned(), reason: other.to_string() },
    })
}

/// Makes the tables of a new store; answers the schema.
fn prepare(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let schema = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get("schema")?.map(|value| value.value());
        if found.is_none() {
            meta.insert("schema", SCHEMA)?;
        }
        transaction.open_table(OBJECTS)?;
        found.unwrap_or(SCHEMA)
    };
    transaction.commit()?;
    Ok(schema)
}

fn read_all(database: &Database) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let transaction = database.begin_read()?;
    let objects = transaction.open_table(OBJECTS)?;
    let mut entries = Vec::new();
    for entry in objects.iter()? {
        let (key, value) = entry?;
        entries.push((key.value().to_owned(), value.value().to_vec()));
    }
    Ok(entries)
}

/// `doubt`: where the values go that were there before, if nobody can tell whether they still are.
fn write_all(
    database: &Database,
    entries: &[(&str, Option<Vec<u8>>)],
    doubt: &mut Values,
) -> Result<(), redb::Error> {
    // redb's default durability: commit() returns after the fsync.
    let transaction = database.begin_write()?;
    let mut before = Values::new();
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for (key, value) in entries {
            let old = match value {
                Some(value) => objects.insert(key, value.as_slice())?,
                None => objects.remove(key)?,
            };
            let old = old.map(|old| old.value().to_vec());
            before.entry((*key).to_owned()).or_insert(old);
        }
    }
    Ok(transaction.commit().inspect_err(|_| *doubt = before)?)
}

impl Store for RedbStore {
    fn load(&self) -> Result<BTreeMap<String, Value>, StoreError> {
        let entries = self.with(|database, _| read_all(database), StoreError::Unreadable)?;
        entries
            .into_iter()
            .map(|(key, bytes)| match serde_json::from_slice(&bytes) {
                Ok(value) => Ok((key, value)),
                Err(error) => Err(StoreError::Unreadable(format!("{key}: {error}"))),
            })
            .collect()
    }

    fn commit(&self, changes: &[Vec<Entry>]) -> Result<(), StoreError> {
        let entries: Vec<_> = changes
            .iter()
            .flatten()
            .map(|(key, value)| (key.as_str(), value.as_ref().map(|value| value.to_string().into_bytes())))
            .collect();
        let done = self.with(|database, doubt| write_all(database, &entries, doubt), StoreError::Unwritable);
        if done.is_err() {
            // Opening it anew takes back what is in doubt; if it cannot be now, then before the next commit.
            let _ = self.with(|_, _| Ok(()), StoreError::Unwritable);
        }
        done
    }

    fn note_making(&self, links: &[At]) -> Result<(), StoreError> {
        let note = || {
            let new = self.making.with_extension("new");
            std::fs::write(&new, serde_json::to_vec(links)?)?;
            std::fs::rename(new, &self.making)
        };
        note().map_err(|error| StoreError::Unwritable(error.to_string()))
    }

    fn making(&self) -> Vec<At> {
        let note = std::fs::read(&self.making).unwrap_or_default();
        // Missing, or torn by a power failure, after which there are no links.
        serde_json::from_slice(&note).unwrap_or_default()
    }
}

/// A store in memory that can be told to fail, for tests of what uses it.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<String, Value>,
    commits: Vec<Vec<Entry>>,
    making: Vec<At>,
    broken: bool,
}

impl MemoryStore {
    fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every change that was committed so far, in order.
    pub fn commits(&self) -> Vec<Vec<Entry>> {
        self.lock().commits.clone()
    }

    /// Makes every later commit fail, or work again.
    pub fn set_broken(&self, broken: bool) {
        self.lock().broken = broken;
    }
}

impl Store for MemoryStore {
    fn load(&self) -> Result<BTreeMap<String, Value>, StoreError> {
        Ok(self.lock().entries.clone())
    }

    fn commit(&self, changes: &[Vec<Entry>]) -> Result<(), StoreError> {
        let mut memory = self.lock();
        if memory.broken {
            return Err(StoreError::Unwritable("the memory store was told to fail".to_owned()));
        }
        memory.commits.extend_from_slice(changes);
        for (key, value) in changes.iter().flatten() {
            match value {
                Some(value) => drop(memory.entries.insert(key.clone(), value.clone())),
                None => drop(memory.entries.remove(key)),
            }
        }
        Ok(())
    }

    fn note_making(&self, links: &[At]) -> Result<(), StoreError> {
        self.lock().making = links.to_vec();
        Ok(())
    }

    fn making(&self) -> Vec<At> {
        self.lock().making.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::links::Place;

    #[test]
    fn what_was_committed_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        let first = vec![("a".into(), Some(json!({"x": 0}))), ("b".into(), Some(json!(2)))];
        let second = vec![("a".into(), Some(json!({"x": 1})))];
        store.commit(&[first, second]).unwrap();
        store.commit(&[vec![("b".into(), None)]]).unwrap();
        drop(store);
        let store = RedbStore::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap(), BTreeMap::from([("a".to_owned(), json!({"x": 1}))]));
    }

    #[test]
    fn a_file_that_ends_anywhere_opens_at_a_whole_revision_or_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        let mut revisions = vec![store.load().unwrap()];
        for revision in 0..4 {
            let entries: Vec<Entry> =
                (0..20).map(|key| (format!("{revision}/{key}"), Some(json!({ "is": key })))).collect();
            store.commit(&[entries]).unwrap();
            revisions.push(store.load().unwrap());
        }
        drop(store);
        let file = std::fs::read(dir.path().join("state.redb")).unwrap();
        let cut = tempfile::tempdir().unwrap();
        let path = cut.path().join("state.redb");
        // Every byte of the header, then some of every page; `LENGTHS=all`: every byte, which takes minutes.
        let step = if std::env::var_os("LENGTHS").is_some() { 1 } else { 509 };
        let lengths = (0..512).chain((512..file.len()).step_by(step)).chain([file.len()]);
        println!("{} lengths of a file of {} bytes", lengths.clone().count(), file.len());
        let mut opened = 0;
        for length in lengths {
            std::fs::write(&path, &file[..length]).unwrap();
            match RedbStore::open(cut.path()).and_then(|store| store.load()) {
                Ok(found) => {
                    assert!(revisions.contains(&found), "{length} bytes: half a revision");
                    opened += 1;
                }
                Err(error) => assert!(error.to_string().contains("state.redb"), "{error}"),
            }
        }
        assert!(opened > 0, "not even the whole file opens");
    }

    #[test]
    fn the_last_note_is_there_after_a_reopen_and_a_torn_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        assert_eq!(store.making(), []);
        let links = [At::here("br-a"), At::new(Place::Named("guest".into()), "eth0")];
        store.note_making(&[At::here("br-0")]).unwrap();
        store.note_making(&links).unwrap();
        drop(store);
        let store = RedbStore::open(dir.path()).unwrap();
        assert_eq!(store.making(), links);
        std::fs::write(dir.path().join("making.json"), "[{\"place\":").unwrap();
        assert_eq!(store.making(), []);
    }

    #[test]
    fn a_second_worker_is_told_that_the_store_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let _first = RedbStore::open(dir.path()).unwrap();
        let error = RedbStore::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    }

    #[test]
    fn a_state_directory_that_is_a_file_is_one_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("taken");
        std::fs::write(&file, "x").unwrap();
        let error = RedbStore::open(&file).unwrap_err();
        assert!(error.to_string().contains("taken/state.redb"), "{error}");
    }

    #[test]
    fn a_store_of_another_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path()).unwrap();
        drop(store);
        let database = open(&dir.path().join("state.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("schema", 9).unwrap();
        transaction.commit().unwrap();
        drop(database);
        assert!(matches!(RedbStore::open(dir.path()), Err(StoreError::OtherSchema { found: 9, .. })));
    }
}
