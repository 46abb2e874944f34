//! Room for what runs long: so many at once, and so many of one user.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of all users.
    pub all: usize,
    /// Of each user but root.
    pub each: usize,
}

/// Those that are running.
#[derive(Debug)]
pub struct Slots {
    limits: Limits,
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
}

/// One that runs, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
    uid: u32,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of all users.
    All,
    /// The caller's own.
    Each,
}

impl Slots {
    /// None runs yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    /// Takes a slot for a user.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn take(&self, uid: u32) -> Result<Slot, Full> {
        let mut taken = lock(&self.taken);
        if uid != 0 && taken.get(&uid).is_some_and(|own| *own >= self.limits.each) {
            return Err(Full::Each);
        }
        if taken.values().sum::<usize>() >= self.limits.all {
            return Err(Full::All);
        }
        *taken.entry(uid).or_default() += 1;
        Ok(Slot { taken: Arc::clone(&self.taken), uid })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        match taken.get_mut(&self.uid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.remove(&self.uid);
            }
        }
    }
}

fn lock(taken: &Mutex<BTreeMap<u32, usize>>) -> MutexGuard<'_, BTreeMap<u32, usize>> {
    // Each change is one of one number.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn no_user_but_root_takes_all() {
        let slots = Slots::new(Limits { all: 5, each: 2 });
        let take = |uid| slots.take(uid).map_err(|full| assert_eq!(full, Full::Each));
        let first = take(1000).unwrap();
        let _second = take(1000).unwrap();
        assert!(take(1000).is_err());
        let _other = take(1001).unwrap();
        let root = [slots.take(0).unwrap(), slots.take(0).unwrap()];
        assert_eq!(slots.take(0).unwrap_err(), Full::All);
        assert_eq!(slots.take(1001).unwrap_err(), Full::All);
        drop(first);
        assert_eq!(lock(&slots.taken).get(&1000), Some(&1));
        let third = slots.take(0).expect("root has no limit of its own");
        drop((root, third));
        assert!(!lock(&slots.taken).contains_key(&0), "nothing is kept of who has none");
        assert!(take(1000).is_ok());
    }
}
