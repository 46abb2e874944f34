//! `kvmctl events`.

use crate::{
    client::{Clients, DEADLINE, within},
    output::{Printer, Stop, event::Event},
};
use proto::netd::v1 as wire;
use shared::fault::Fault;
use tonic::Request;

/// Lists events, or follows them.
///
/// # Errors
/// Whatever ended it early.
pub async fn run(since: i64, follow: bool, clients: &Clients, printer: &mut Printer<'_>) -> Result<(), Stop> {
    let kept = all(since, clients).await?;
    if !follow {
        return printer.list(&kept);
    }
    let mut last = since;
    for event in &kept {
        printer.entry(event)?;
        last = event.revision;
    }
    let mut events = clients.events()?;
    let request = Request::new(wire::WatchEventsRequest { since_revision: last, since_epoch: String::new() });
    let mut news = clients.netd.call(DEADLINE, events.watch_events(request)).await?;
    while let Some(event) = news.message().await.map_err(Fault::from)? {
        printer.entry(&Event::from(event))?;
    }
    Ok(())
}

async fn all(since: i64, clients: &Clients) -> Result<Vec<Event>, Fault> {
    let mut found = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListEventsRequest { since_revision: since, page_token, ..Default::default() };
        let mut events = clients.events()?;
        let page = clients.netd.call(DEADLINE, events.list_events(within(DEADLINE, request))).await?;
        found.extend(page.events.into_iter().map(Event::from));
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}
