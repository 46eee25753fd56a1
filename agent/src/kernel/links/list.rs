//! The links of one place, each shared with the look before: of thousands, a change copies the one that it is about.

use std::{
    ops::{Index, IndexMut},
    slice,
    sync::Arc,
};

use super::Link;

/// Links by index; to read them is as with a slice, and who changes one gets a copy of it first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links(Vec<Arc<Link>>);

type Shared<'a> = slice::Iter<'a, Arc<Link>>;
type Read = fn(&Arc<Link>) -> &Link;

impl Links {
    pub const NONE: Self = Self(Vec::new());

    pub fn iter(&self) -> std::iter::Map<Shared<'_>, Read> {
        self.into_iter()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.0.iter_mut().map(Arc::make_mut)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn with_index(&self, index: u32) -> Option<&Link> {
        let position = self.0.binary_search_by_key(&index, |link| link.index).ok()?;
        self.0.get(position).map(|link| &**link)
    }

    /// As they are held.
    pub fn shared(&self) -> &[Arc<Link>] {
        &self.0
    }

    pub fn push(&mut self, link: Link) {
        self.0.push(Arc::new(link));
    }

    pub fn remove(&mut self, position: usize) -> Link {
        Arc::unwrap_or_clone(self.0.remove(position))
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&Link) -> bool) {
        self.0.retain(|link| keep(link));
    }

    /// By index again, after a change.
    pub fn sort(&mut self) {
        self.0.sort_by_key(|link| link.index);
    }
}

impl<'a> IntoIterator for &'a Links {
    type Item = &'a Link;
    type IntoIter = std::iter::Map<Shared<'a>, Read>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|link| &**link)
    }
}

impl FromIterator<Arc<Link>> for Links {
    fn from_iter<I: IntoIterator<Item = Arc<Link>>>(links: I) -> Self {
        Self(links.into_iter().collect())
    }
}

impl From<Vec<Link>> for Links {
    fn from(links: Vec<Link>) -> Self {
        links.into_iter().map(Arc::new).collect()
    }
}

impl Index<usize> for Links {
    type Output = Link;

    fn index(&self, position: usize) -> &Link {
        &self.0[position]
    }
}

impl IndexMut<usize> for Links {
    fn index_mut(&mut self, position: usize) -> &mut Link {
        Arc::make_mut(&mut self.0[position])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::links::LinkKind;

    #[test]
    fn who_changes_a_link_copies_that_one_only() {
        let link = |index: u32| Link::new(index, format!("tap{index}"), LinkKind::Tap);
        let before: Links = vec![link(1), link(5)].into();
        let mut after = before.clone();
        after[1].up = true;
        assert_eq!(before.with_index(5).map(|link| link.up), Some(false));
        assert_eq!(after.with_index(5).map(|link| link.up), Some(true));
        let same = |position: usize| Arc::ptr_eq(&before.shared()[position], &after.shared()[position]);
        assert_eq!((same(0), same(1)), (true, false));
    }
}
