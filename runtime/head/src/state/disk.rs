//! A journal in a redb file.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Error, Journal, Record};

/// Records as JSON, by their key.
const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// Memory that the database may use for pages; the whole state of a large cluster is a few megabytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Records in one file, one transaction for each batch.
pub struct Disk {
    database: Database,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::Database(e.to_string())
}

impl Disk {
    /// Opens the file, or makes it, readable by its owner alone. Fails while another head has it open.
    pub fn open(file: &Path) -> Result<Self, Error> {
        let at = |e: &dyn std::fmt::Display| Error::Database(format!("{}: {e}", file.display()));
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(file)
            .map_err(|e| at(&e))?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(file).map_err(|e| at(&e))?;
        Ok(Self { database })
    }
}

impl Journal for Disk {
    fn load(&self) -> Result<Vec<Record>, Error> {
        let read = self.database.begin_read().map_err(failed)?;
        let table = match read.open_table(TABLE) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut records = Vec::new();
        for entry in table.iter().map_err(failed)? {
            let (key, value) = entry.map_err(failed)?;
            let record = serde_json::from_slice(value.value())
                .map_err(|e| Error::Record { key: key.value().to_owned(), detail: e.to_string() })?;
            records.push(record);
        }
        Ok(records)
    }

    fn append(&self, records: &[Record]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let write = self.database.begin_write().map_err(failed)?;
        {
            let mut table = write.open_table(TABLE).map_err(failed)?;
            for record in records {
                let key = record.key();
                if record.removes() {
                    table.remove(key.as_str()).map_err(failed)?;
                } else {
                    let value = serde_json::to_vec(record).map_err(failed)?;
                    table.insert(key.as_str(), value.as_slice()).map_err(failed)?;
                }
            }
        }
        write.commit().map_err(failed)
    }
}
