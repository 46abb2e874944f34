//! `kvmctl events`.

use crate::{
    cli::Events,
    client::{Clients, DEADLINE, Daemon, DaemonName, within},
    diagnose,
    output::{
        Printer, Stop,
        event::{Event, merge, stamp},
    },
    parse::{Cursor, Place},
};
use proto::events::v1 as wire;
use shared::fault::{Fault, Kind};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Request, Streaming};

/// Pause before a lost watch is taken up again; it doubles up to `LONGEST`.
pub(super) const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
pub(super) const LONGEST: Duration = Duration::from_secs(2);
/// Events that are read ahead of the printing.
const AHEAD: usize = 64;

/// What one daemon had to say.
struct Listed {
    events: Vec<Event>,
    /// Behind the last of them, or where the daemon was when there was none.
    place: Place,
}

/// What a watch brings.
enum Heard {
    Event(Event),
    /// A daemon went away: which, and why.
    Lost(DaemonName, Fault),
    Back(DaemonName),
    Failed(Fault),
}

/// Lists events, or follows them. Where one daemon cannot be reached the other's are printed all the same; a list then
/// fails, and one that follows waits for it.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(asked: Events, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let mut cursor = asked.since.clone().unwrap_or_default();
    let (netd, vmd) = tokio::join!(
        list(DaemonName::Netd, &asked, &cursor.netd, clients),
        list(DaemonName::Vmd, &asked, &cursor.vmd, clients)
    );
    let faults: Vec<Fault> =
        [&netd, &vmd].into_iter().filter_map(|answer| answer.as_ref().err().cloned()).collect();
    let (netd, vmd) = match (netd, vmd) {
        (Err(first), Err(second)) => {
            printer.verbatim(&diagnose::render(&second, None));
            return Err(first.into());
        }
        answers => answers,
    };
    let waits = |fault: &Fault| asked.follow && fault.kind() == Kind::Unavailable;
    if let Some(fault) = faults.iter().find(|fault| !waits(fault) && fault.kind() != Kind::Unavailable) {
        return Err(fault.clone().into());
    }
    let [netd, vmd] = [(netd, &mut cursor.netd), (vmd, &mut cursor.vmd)].map(|(answer, place)| {
        let listed = answer.unwrap_or_else(|_| Listed { events: Vec::new(), place: place.clone() });
        (listed.events, listed.place)
    });
    let mut events = merge(netd.0, vmd.0);
    for event in &mut events {
        stamp(event, &mut cursor);
    }
    (cursor.netd, cursor.vmd) = (netd.1, vmd.1);
    events.retain(|event| wanted(&asked, event));
    if asked.follow {
        for event in &events {
            printer.entry(event)?;
        }
        return follow(&asked, cursor, clients, printer).await;
    }
    printer.list(&events)?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault.into());
    }
    printer.remark(&format!("go on from here with --since {cursor}"));
    Ok(())
}

fn wanted(asked: &Events, event: &Event) -> bool {
    let resource = event.resource.as_deref().unwrap_or_default();
    event.kind == "gone"
        || (asked.kinds.is_empty() || asked.kinds.contains(&event.kind))
            && (asked.resources.is_empty() || asked.resources.iter().any(|pattern| pattern.matches(resource)))
}

/// Whether a daemon's events are asked for.
fn of(asked: &Events, daemon: DaemonName) -> bool {
    asked.from.is_none_or(|only| only == daemon)
}

async fn list(daemon: DaemonName, asked: &Events, since: &Place, clients: &Clients) -> Result<Listed, Fault> {
    let mut listed = Listed { events: Vec::new(), place: since.clone() };
    if !of(asked, daemon) {
        return Ok(listed);
    }
    let mut token = String::new();
    loop {
        let (events, next, place) = page(daemon, since, token, clients).await?;
        listed.events.extend(events);
        token = next;
        if token.is_empty() {
            listed.place = listed.events.last().map_or(place, Event::place);
            return Ok(listed);
        }
    }
}

/// Events, token of the next page, and where the daemon is.
async fn page(
    daemon: DaemonName,
    since: &Place,
    page_token: String,
    clients: &Clients,
) -> Result<(Vec<Event>, String, Place), Fault> {
    let Place { epoch: since_epoch, revision: since_revision } = since.clone();
    let request = wire::ListEventsRequest { since_revision, page_size: 0, page_token, since_epoch };
    let mut events = clients.events(daemon)?;
    let daemon = clients.of(daemon);
    let page = daemon.call(DEADLINE, events.list_events(within(DEADLINE, request))).await?;
    let events = page.events.into_iter().map(|event| Event::of(daemon.name(), event)).collect();
    Ok((events, page.next_page_token, Place { epoch: page.epoch, revision: page.revision }))
}

async fn follow(
    asked: &Events,
    mut cursor: Cursor,
    clients: &Clients,
    printer: &mut Printer<'_>,
) -> Result<(), Stop> {
    let (tell, mut heard) = mpsc::channel(AHEAD);
    let (netd, vmd) = (cursor.netd.clone(), cursor.vmd.clone());
    let hear = async {
        tokio::join!(
            hear(DaemonName::Netd, asked, netd, (clients, tell.clone())),
            hear(DaemonName::Vmd, asked, vmd, (clients, tell.clone()))
        );
        // Both have failed for good, which was told.
        std::future::pending::<()>().await;
    };
    let print = async {
        loop {
            match heard.recv().await {
                Some(Heard::Event(mut event)) => {
                    stamp(&mut event, &mut cursor);
                    if wanted(asked, &event) {
                        printer.entry(&event)?;
                    }
                }
                Some(Heard::Lost(daemon, fault)) => {
                    printer.remark(&format!("warning: {}; waiting for {}", fault, clients.of(daemon).name()));
                }
                Some(Heard::Back(daemon)) => {
                    printer.remark(&format!("{} is back", clients.of(daemon).name()))
                }
                Some(Heard::Failed(fault)) => return Err(Stop::from(fault)),
                None => return Ok(()),
            }
        }
    };
    tokio::select! {
        result = print => result,
        () = hear => Ok(()),
    }
}

/// Follows one daemon's events for ever, through its restarts.
async fn hear(
    daemon: DaemonName,
    asked: &Events,
    mut place: Place,
    (clients, tell): (&Clients, mpsc::Sender<Heard>),
) {
    if !of(asked, daemon) {
        return;
    }
    let (mut pause, mut away) = (FIRST, false);
    loop {
        let fault = match begin(daemon, asked, &place, clients).await {
            Ok((earlier, mut stream)) => {
                if away && tell.send(Heard::Back(daemon)).await.is_err() {
                    return;
                }
                (pause, away) = (FIRST, false);
                for event in earlier {
                    place = event.place();
                    if tell.send(Heard::Event(event)).await.is_err() {
                        return;
                    }
                }
                loop {
                    match next(&mut stream, clients.of(daemon)).await {
                        Ok(event) => {
                            place = event.place();
                            if tell.send(Heard::Event(event)).await.is_err() {
                                return;
                            }
                        }
                        Err(fault) => break fault,
                    }
                }
            }
            Err(fault) => fault,
        };
        let heard = match (fault.kind(), fault.reason()) {
            (_, "EVENTS_GONE") => match page(daemon, &Place::default(), String::new(), clients).await {
                Ok((.., now)) => {
                    place = now;
                    Some(Heard::Event(Event::gone(clients.of(daemon).name(), &place)))
                }
                Err(_) => None,
            },
            // All of it is still there to be read.
            (Kind::Aborted, _) => None,
            (Kind::Unavailable, _) if away => None,
            (Kind::Unavailable, _) => {
                away = true;
                Some(Heard::Lost(daemon, fault))
            }
            _ => Some(Heard::Failed(fault)),
        };
        if let Some(heard) = heard {
            let over = matches!(heard, Heard::Failed(_));
            if tell.send(heard).await.is_err() || over {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}

/// A watch from a place on. A watch from nowhere would bring new events only, so that there the others are listed.
async fn begin(
    daemon: DaemonName,
    asked: &Events,
    place: &Place,
    clients: &Clients,
) -> Result<(Vec<Event>, Streaming<wire::Event>), Fault> {
    if place.revision > 0 {
        return Ok((Vec::new(), open(daemon, place, clients).await?));
    }
    let listed = list(daemon, asked, place, clients).await?;
    let watch = open(daemon, &listed.place, clients).await?;
    Ok((listed.events, watch))
}

/// The next event of a daemon's watch; UNAVAILABLE at the end of the stream, which is that of the daemon.
async fn next(stream: &mut Streaming<wire::Event>, daemon: &Daemon) -> Result<Event, Fault> {
    let event = stream.message().await.map_err(|status| daemon.fault(status))?;
    event.map(|event| Event::of(daemon.name(), event)).ok_or_else(|| ended(daemon))
}

/// The fault of a watch that the daemon has ended.
pub(super) fn ended(daemon: &Daemon) -> Fault {
    Fault::new(Kind::Unavailable, "ENDED", format!("{} has ended", daemon.name()))
}

async fn open(daemon: DaemonName, place: &Place, clients: &Clients) -> Result<Streaming<wire::Event>, Fault> {
    let Place { epoch: since_epoch, revision: since_revision } = place.clone();
    let request = Request::new(wire::WatchEventsRequest { since_revision, since_epoch });
    let mut events = clients.events(daemon)?;
    clients.of(daemon).call(DEADLINE, events.watch_events(request)).await
}
