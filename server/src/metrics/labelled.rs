//! A metric with one label whose few values are known at compile time.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;

/// One metric per label value, made on first use. Code that updates it often keeps the handle.
#[derive(Debug)]
pub struct Labelled<M> {
    children: RwLock<BTreeMap<&'static str, Arc<M>>>,
    make: fn() -> M,
}

impl<M> Labelled<M> {
    pub(super) fn new(make: fn() -> M) -> Self {
        Self {
            children: RwLock::default(),
            make,
        }
    }

    /// The handle for this label value.
    pub fn get(&self, value: &'static str) -> Arc<M> {
        if let Some(child) = self.children.read().get(value) {
            return child.clone();
        }
        let mut children = self.children.write();
        children.entry(value).or_insert_with(|| Arc::new((self.make)())).clone()
    }

    pub(super) fn all(&self) -> Vec<(&'static str, Arc<M>)> {
        let children = self.children.read();
        children.iter().map(|(value, child)| (*value, child.clone())).collect()
    }
}
