//! Limits of bandwidth. What a link sends goes through a token bucket (tc-tbf(8)). What it receives cannot wait there,
//! so it is led through another link, an ifb, which has the bucket.
//!
//! The kernel's reference: net/sched/sch_tbf.c, net/sched/cls_u32.c, net/sched/act_mirred.c, drivers/net/ifb.c.

use super::{Link, LinkKind};
use crate::model::{IfName, LINK_GROUP, Rate};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::{
    Error, Handle,
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_ECHO, NLM_F_EXCL, NLM_F_REPLACE,
        NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _, NlasIterator,
    },
    packet_route::{
        RouteNetlinkMessage,
        tc::{
            TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option,
            TcHandle, TcMessage, TcMirrorActionType, TcOption,
        },
    },
};
use std::collections::BTreeMap;

/// Mark of our qdiscs, as the upper half of their handle, and of our filters, as their priority: "kv" in ASCII.
const MARK: u16 = LINK_GROUP as u16;
/// Handle of an ingress qdisc, the only one it can have.
const INGRESS: u32 = 0xffff_0000;
/// Frames of all types, in the byte order of the wire.
const ALL_TYPES: u16 = 0x0003_u16.to_be();
/// Kind of a token bucket.
pub const TBF: &str = "tbf";

/// Attributes of a token bucket (include/uapi/linux/pkt_sched.h).
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`: no table of rates is needed.
const ETHERNET: u8 = 1;
/// Length of `struct tc_tbf_qopt`.
const PARMS: usize = 36;

/// Frames wait no longer than this for a rate, beyond what the burst lets wait: one part in so many of a second.
const LATENCY: u64 = 20;
/// Most bytes that wait for the rate's sake, so that a fast one does not fill the kernel's memory.
const MOST_WAITING: u64 = 16 << 20;
/// Longest frame before it is segmented, with room to spare; what waits must have room for one.
const LONGEST_FRAME: u64 = 128 << 10;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

/// A token bucket, in what the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// How long the rate takes for the burst, in the kernel's ticks of 64 ns; the lower 32 bits.
    pub buffer: u32,
}

impl Bucket {
    /// The bucket of a rate.
    #[must_use]
    pub fn of(rate: Rate) -> Self {
        let bytes = (rate.bits_per_second / 8).max(1);
        let burst = u64::from(rate.burst_bytes);
        let waiting = burst.min(LONGEST_FRAME) + (bytes / LATENCY).min(MOST_WAITING);
        Self {
            rate: bytes,
            limit: u32::try_from(waiting).unwrap_or(u32::MAX),
            buffer: ticks(burst, bytes) as u32,
        }
    }

    /// Whether this is the bucket of that rate, but for the kernel's rounding.
    #[must_use]
    pub fn carries(&self, rate: Rate) -> bool {
        let wanted = Self::of(rate);
        // One part in 2^30, as psched_ratecfg_precompute has it, and two ticks.
        let rounding = (ticks(u64::from(rate.burst_bytes), wanted.rate) >> 30) + 2;
        let off = self.buffer.wrapping_sub(wanted.buffer).cast_signed().unsigned_abs();
        self.rate == wanted.rate && self.limit == wanted.limit && u64::from(off) <= rounding
    }
}

/// How long `rate` bytes a second take for `burst` bytes, in ticks of 64 ns.
fn ticks(burst: u64, rate: u64) -> u64 {
    let nanoseconds = u128::from(burst) * 1_000_000_000 / u128::from(rate);
    u64::try_from(nanoseconds >> 6).unwrap_or(u64::MAX)
}

/// Puts a token bucket where the link sends, or changes the one that is there without losing what waits in it.
pub async fn set(netlink: &Handle, index: u32, rate: Rate) -> Result<(), Error> {
    let bucket = Bucket::of(rate);
    let mut parms = [0; PARMS];
    parms[1] = ETHERNET;
    // More than 32 bits are told by an attribute of their own.
    parms[8..12].copy_from_slice(&u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    parms[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
    parms[28..32].copy_from_slice(&bucket.buffer.to_ne_bytes());
    let mut options = vec![
        DefaultNla::new(TCA_TBF_PARMS, parms.to_vec()),
        DefaultNla::new(TCA_TBF_BURST, rate.burst_bytes.to_ne_bytes().to_vec()),
    ];
    if u32::try_from(bucket.rate).is_err() {
        options.push(DefaultNla::new(TCA_TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()));
    }
    let mut message = about(index, TcHandle::ROOT, TcHandle { major: MARK, minor: 0 });
    message.attributes = vec![
        TcAttribute::Kind(TBF.to_owned()),
        TcAttribute::Options(options.into_iter().map(TcOption::Other).collect()),
    ];
    ask(netlink, RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
        .await
        .map(drop)
}

/// Removes our token bucket; somebody else's stays.
pub async fn clear(netlink: &Handle, index: u32) -> Result<(), Error> {
    let message = about(index, TcHandle::ROOT, TcHandle { major: MARK, minor: 0 });
    let request = RouteNetlinkMessage::DelQueueDiscipline(message);
    // EINVAL: another one is there.
    passing_over(ask(netlink, request, NLM_F_ACK).await, &[ENOENT, EINVAL])
}

/// Leads all that link `from` receives out by link `to`, which gives it back when its turn has come.
pub async fn redirect(netlink: &Handle, from: u32, to: u32) -> Result<(), Error> {
    let mut qdisc = about(from, TcHandle::INGRESS, INGRESS.into());
    qdisc.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc);
    passing_over(ask(netlink, request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).await, &[EEXIST])?;
    delete_filter(netlink, from).await?;
    // The priority first: it overwrites the protocol.
    let filter =
        netlink.traffic_filter(from.cast_signed()).add().parent(INGRESS).priority(MARK).protocol(ALL_TYPES);
    filter.redirect(to)?.execute().await
}

/// Ends that, and removes the ingress qdisc unless it has filters of somebody else.
pub async fn unredirect(netlink: &Handle, from: u32) -> Result<(), Error> {
    delete_filter(netlink, from).await?;
    if !filters(netlink, from).await?.is_empty() {
        return Ok(());
    }
    let request = RouteNetlinkMessage::DelQueueDiscipline(about(from, TcHandle::INGRESS, INGRESS.into()));
    passing_over(ask(netlink, request, NLM_F_ACK).await, &[ENOENT, EINVAL])
}

async fn delete_filter(netlink: &Handle, index: u32) -> Result<(), Error> {
    let mut message = about(index, INGRESS.into(), TcHandle::UNSPEC);
    message.header.info = u32::from(TcHandle { major: MARK, minor: ALL_TYPES });
    let request = RouteNetlinkMessage::DelTrafficFilter(message);
    // EINVAL: there is no ingress qdisc.
    passing_over(ask(netlink, request, NLM_F_ACK).await, &[ENOENT, EINVAL])
}

/// Adds to our links what shapes them. The caller holds the socket: this is a dump, and one more for each link with an
/// ingress qdisc.
pub async fn look_at_all(netlink: &Handle, links: &mut BTreeMap<IfName, Link>) -> Result<(), Error> {
    let mut ours: BTreeMap<u32, &mut Link> =
        links.values_mut().filter(|link| link.group == LINK_GROUP).map(|link| (link.index, link)).collect();
    let mut qdiscs = netlink.qdisc().get().execute();
    let mut redirecting = Vec::new();
    while let Some(message) = qdiscs.try_next().await? {
        let Some(link) = ours.get_mut(&message.header.index.cast_unsigned()) else { continue };
        if message.header.parent == TcHandle::INGRESS {
            redirecting.push(link.index);
        } else if let Some(bucket) = bucket(&message) {
            link.bucket = Some(bucket);
        }
    }
    for index in redirecting {
        let found = filters(netlink, index).await?.iter().find_map(target);
        if let Some(link) = ours.get_mut(&index) {
            link.redirect = found;
        }
    }
    Ok(())
}

/// As `look_at_all` for one link, at a cost that does not grow with the number of links. The caller holds the socket.
pub async fn look_at(netlink: &Handle, link: &mut Link, qdisc: &str) -> Result<(), Error> {
    if qdisc == TBF {
        // The answer goes to who asked with an echo only, and to all who listen for changes.
        let request =
            RouteNetlinkMessage::GetQueueDiscipline(about(link.index, TcHandle::ROOT, TcHandle::UNSPEC));
        let answers = ask(netlink, request, NLM_F_ECHO).await?;
        link.bucket = answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => bucket(message),
            _ => None,
        });
    }
    if matches!(link.kind, LinkKind::Tap { .. }) {
        link.redirect = filters(netlink, link.index).await?.iter().find_map(target);
    }
    Ok(())
}

/// The filters of what a link receives; none without an ingress qdisc.
async fn filters(netlink: &Handle, index: u32) -> Result<Vec<TcMessage>, Error> {
    let request = RouteNetlinkMessage::GetTrafficFilter(about(index, INGRESS.into(), TcHandle::UNSPEC));
    let answers = ask(netlink, request, NLM_F_DUMP).await?;
    let filters = answers.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
        _ => None,
    });
    Ok(filters.collect())
}

fn about(index: u32, parent: TcHandle, handle: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message.header.handle = handle;
    message
}

/// Sends a request and returns its answers; the first error ends it.
async fn ask(
    netlink: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
) -> Result<Vec<RouteNetlinkMessage>, Error> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | flags;
    let mut answers = netlink.clone().request(request)?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(Error::NetlinkError(error)),
            NetlinkPayload::InnerMessage(message) => found.push(message),
            _ => {}
        }
    }
    Ok(found)
}

fn passing_over<T>(result: Result<T, Error>, means_done: &[i32]) -> Result<(), Error> {
    match result {
        Err(Error::NetlinkError(message)) if means_done.contains(&-message.raw_code()) => Ok(()),
        other => other.map(drop),
    }
}

/// Our token bucket where a link sends.
pub(super) fn bucket(message: &TcMessage) -> Option<Bucket> {
    let ours = message.header.parent == TcHandle::ROOT && message.header.handle.major == MARK;
    let tbf = message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == TBF));
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) if ours && tbf => Some(options),
        _ => None,
    })?;
    // The kinds that the crate does not know, it gives as the whole attribute.
    let [TcOption::Other(nla)] = options.as_slice() else { return None };
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    let mut bucket = None;
    let mut rate64 = None;
    for option in NlasIterator::new(&value[..]).flatten() {
        match (option.kind(), option.value()) {
            (TCA_TBF_PARMS, parms) if parms.len() >= PARMS => {
                let number = |at: usize| Some(u32::from_ne_bytes(parms[at..at + 4].try_into().ok()?));
                bucket = Some(Bucket { rate: number(8)?.into(), limit: number(24)?, buffer: number(28)? });
            }
            (TCA_TBF_RATE64, rate) => rate64 = Some(u64::from_ne_bytes(rate.try_into().ok()?)),
            _ => {}
        }
    }
    bucket.map(|bucket| Bucket { rate: rate64.unwrap_or(bucket.rate), ..bucket })
}

/// Where our filter leads; 0 if that link is gone.
pub(super) fn target(message: &TcMessage) -> Option<u32> {
    let ours = TcHandle::from(message.header.info).major == MARK;
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) if ours => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    let attributes = actions.iter().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
            if mirror.eaction == TcMirrorActionType::EgressRedir =>
        {
            Some(mirror.ifindex)
        }
        _ => None,
    })
}

#[cfg(test)]
mod test;
