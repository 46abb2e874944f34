//! Room for what costs something: so many at once, and so many of one user.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Of all users.
    pub all: usize,
    /// Of each user but the privileged: root, and a daemon's own user where it is an admin.
    pub each: usize,
    /// More that the privileged may have, so that an operator gets in while others hold everything.
    pub reserve: usize,
}

/// Those that are taken.
#[derive(Debug)]
pub struct Slots {
    share: Share,
    admin: u32,
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
}

/// One that is taken, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    taken: Arc<Mutex<BTreeMap<u32, usize>>>,
    uid: u32,
}

/// Which limit is reached, and how many that is for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of all users; for the privileged with what is kept for them.
    All(usize),
    /// The caller's own.
    Each(usize),
}

impl Slots {
    /// None is taken yet. `admin` is privileged besides root; 0 if nobody is.
    #[must_use]
    pub fn new(share: Share, admin: u32) -> Self {
        Self { share, admin, taken: Arc::default() }
    }

    /// Takes a slot for a user.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn take(&self, uid: u32) -> Result<Slot, Full> {
        let Share { all, each, reserve } = self.share;
        let privileged = |uid: u32| uid == 0 || uid == self.admin;
        let mut taken = lock(&self.taken);
        let ordinary: usize =
            taken.iter().filter(|(uid, _)| !privileged(**uid)).map(|(_, count)| count).sum();
        let others = taken.values().sum::<usize>() - ordinary;
        let (used, most) = if privileged(uid) {
            (ordinary + others, all + reserve)
        } else {
            if taken.get(&uid).is_some_and(|own| *own >= each) {
                return Err(Full::Each(each));
            }
            // What is kept for the privileged is used up first, so that they take nothing from the others before.
            (ordinary + others.saturating_sub(reserve), all)
        };
        if used >= most {
            return Err(Full::All(most));
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

    fn slots(all: usize, each: usize, reserve: usize) -> Slots {
        Slots::new(Share { all, each, reserve }, 900)
    }

    #[test]
    fn no_user_but_root_takes_all() {
        let slots = slots(5, 2, 0);
        let take = |uid| slots.take(uid).map_err(|full| assert_eq!(full, Full::Each(2)));
        let first = take(1000).unwrap();
        let _second = take(1000).unwrap();
        assert!(take(1000).is_err());
        let _other = take(1001).unwrap();
        let root = [slots.take(0).unwrap(), slots.take(0).unwrap()];
        assert_eq!(slots.take(0).unwrap_err(), Full::All(5));
        assert_eq!(slots.take(1001).unwrap_err(), Full::All(5));
        drop(first);
        assert_eq!(lock(&slots.taken).get(&1000), Some(&1));
        let third = slots.take(0).expect("root has no limit of its own");
        drop((root, third));
        assert!(!lock(&slots.taken).contains_key(&0), "nothing is kept of who has none");
        assert!(take(1000).is_ok());
    }

    #[test]
    fn the_privileged_always_have_their_reserve_and_take_nothing_from_the_others_before_it_is_used() {
        let slots = slots(3, 3, 2);
        let ordinary: Vec<_> = (0..3).map(|_| slots.take(1000).unwrap()).collect();
        assert_eq!(slots.take(1001).unwrap_err(), Full::All(3));
        let privileged = [slots.take(0).unwrap(), slots.take(900).unwrap()];
        assert_eq!(slots.take(0).unwrap_err(), Full::All(5));
        drop(ordinary);
        let ordinary: Vec<_> = (0..3).map(|_| slots.take(1001).unwrap()).collect();
        drop((ordinary, privileged));
        assert!(lock(&slots.taken).is_empty());
    }
}
