//! Pages of a list, in which objects whose records cannot be read have their place too.

use super::PAGE;
use crate::{
    convert,
    kernel::Kernel,
    model::{ForwardKey, PortKey},
    reconciler::{Reconciler, Sort},
};
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    fault::{Fault, Kind},
    name::Name,
    store::Broken,
};

/// An object of a list.
pub trait Item: Sized {
    /// What lists of it are ordered by.
    type Key: Ord;
    /// Its sort.
    const SORT: Sort;

    /// Its resource name.
    fn name(&self) -> &str;

    /// What a resource name is in the order of the list.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if it is none of this sort.
    fn key(resource: &str) -> Result<Self::Key, Fault>;

    /// One of which nothing but the name is known.
    fn broken(name: String, error: String) -> Self;
}

macro_rules! item {
    ($object:ident, $status:ident, $key:ty, $parse:expr) => {
        impl Item for wire::$object {
            type Key = $key;
            const SORT: Sort = Sort::$object;

            fn name(&self) -> &str {
                &self.name
            }

            fn key(resource: &str) -> Result<$key, Fault> {
                let parse: fn(&str) -> Result<$key, Fault> = $parse;
                parse(resource)
            }

            fn broken(name: String, error: String) -> Self {
                let state = wire::ObjectState::Broken.into();
                let status = Some(wire::$status { state, error, ..Default::default() });
                Self { name, status, ..Default::default() }
            }
        }
    };
}

item!(Network, NetworkStatus, Name, |resource| Name::from_resource(resource, "networks"));
item!(Port, PortStatus, PortKey, convert::port_key);
item!(Forward, ForwardStatus, ForwardKey, convert::forward_key);
item!(Group, GroupStatus, Name, |resource| Name::from_resource(resource, "groups"));

/// Those whose records cannot be read, as the caller may see them.
pub fn broken<T: Item, K: Kernel>(reconciler: &Reconciler<K>, caller: &Caller) -> Vec<T> {
    let broken = reconciler.broken(T::SORT).into_iter();
    broken.map(|Broken { id, why }| T::broken(id, caller.words(&why))).collect()
}

/// As `broken`, of one network or of all.
pub fn broken_of<T: Item<Key = (Name, Name)>, K: Kernel>(
    network: Option<&Name>,
    reconciler: &Reconciler<K>,
    caller: &Caller,
) -> Vec<T> {
    let mut broken = broken::<T, K>(reconciler, caller);
    broken
        .retain(|item| network.is_none_or(|network| T::key(item.name()).is_ok_and(|(of, _)| of == *network)));
    broken
}

/// Number of items that a request asks for.
pub fn page_size(asked: i32) -> Result<usize, Fault> {
    match usize::try_from(asked) {
        Ok(0) => Ok(PAGE),
        Ok(size) => Ok(size.min(PAGE)),
        Err(_) => Err(Fault::new(Kind::InvalidArgument, "INVALID_PAGE_SIZE", "the page size is negative")),
    }
}

/// What the last item of the page before is in the order of the list; `None` on the first page.
pub fn after<T: Item>(token: &str) -> Result<Option<T::Key>, Fault> {
    if token.is_empty() { Ok(None) } else { T::key(token).map(Some) }
}

/// A page of at most `size`, and the token of the next one: `found`, the first `size` of those after `after` that can
/// be read, with `broken` in between. One whose name is no name has no place; `GetHost` warns of it.
pub fn page<T: Item>(
    mut found: Vec<T>,
    broken: Vec<T>,
    after: Option<&T::Key>,
    size: usize,
) -> (Vec<T>, String) {
    let wanted = |item: &T| T::key(item.name()).is_ok_and(|key| after.is_none_or(|after| key > *after));
    let before = found.len();
    found.extend(broken.into_iter().filter(wanted));
    if found.len() > before {
        // All of them have a key.
        found.sort_by_cached_key(|item| T::key(item.name()).ok());
        found.truncate(size);
    }
    let last = found.last().filter(|_| found.len() == size);
    let next = last.map_or_else(String::new, |last| last.name().to_owned());
    (found, next)
}

#[cfg(test)]
mod test {
    use super::*;

    fn named(names: &[&str]) -> Vec<wire::Port> {
        let name =
            |name: &&str| format!("networks/{}/ports/{}", &name[..name.len() - 1], &name[name.len() - 1..]);
        names.iter().map(|n| wire::Port { name: name(n), ..Default::default() }).collect()
    }

    /// Walks all pages, as the reconciler gives them.
    fn walk(whole: &[&str], broken: &[&str], size: usize) -> Vec<String> {
        let (whole, mut token, mut seen) = (named(whole), String::new(), Vec::new());
        for _ in 0..20 {
            let after = after::<wire::Port>(&token).unwrap();
            let rest = whole.iter().filter(|port| {
                after.as_ref().is_none_or(|after| convert::port_key(&port.name).unwrap() > *after)
            });
            let found = rest.take(size).cloned().collect();
            let (items, next) = page(found, named(broken), after.as_ref(), size);
            assert!(items.len() <= size);
            seen.extend(items.into_iter().map(|port| port.name));
            token = next;
            if token.is_empty() {
                return seen;
            }
        }
        panic!("pages without end: {seen:?}");
    }

    #[test]
    fn pages_have_everything_once_in_order_whatever_cannot_be_read() {
        // As text, `a-b/` is before `a/`; as the name of a network it is not.
        let all = ["aa", "ab", "ac", "a-ba", "a-bb", "ba"];
        let expected: Vec<_> = named(&all).into_iter().map(|port| port.name).collect();
        let mut walks = 0;
        for which in 0..1 << all.len() {
            let of = |wanted: usize| -> Vec<&str> {
                all.iter()
                    .enumerate()
                    .filter(|(at, _)| (which >> at) & 1 == wanted)
                    .map(|(_, n)| *n)
                    .collect()
            };
            for size in 1..=all.len() + 1 {
                assert_eq!(walk(&of(0), &of(1), size), expected, "{which:b} {size}");
                walks += 1;
            }
        }
        println!("{walks} walks over pages");
    }

    #[test]
    fn what_has_no_name_has_no_place() {
        let nameless = wire::Network { name: "networks/\u{1}".into(), ..Default::default() };
        let (items, next) = page(Vec::new(), vec![nameless], None, 1);
        assert!(items.is_empty() && next.is_empty());
    }
}
