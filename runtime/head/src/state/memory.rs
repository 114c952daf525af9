//! A journal that ends with the process: for embedded clusters and tests.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::{Error, Journal, Record};

/// Records in memory. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, Record>>>);

impl Journal for Memory {
    fn load(&self) -> Result<Vec<Record>, Error> {
        Ok(self.0.lock().values().cloned().collect())
    }

    fn append(&self, records: &[Record]) -> Result<(), Error> {
        let mut all = self.0.lock();
        for record in records {
            if record.removes() {
                all.remove(&record.key());
            } else {
                all.insert(record.key(), record.clone());
            }
        }
        Ok(())
    }

    fn may_block(&self) -> bool {
        false
    }
}
