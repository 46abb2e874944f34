//! `netd.v1.DiagnoseService`.

use crate::{
    convert::diagnose as convert,
    diagnose::{self, survey, traced, why},
    kernel::{Inspect, Kernel},
    reconciler::Reconciler,
};
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    fault::{Fault, Kind},
    slots::{Full, Share, Slot, Slots},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::timeout,
};
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// Ways out, then ways back: an answer of the kernel leads to one more question.
const ROUNDS: usize = 2;
/// Looks at the host at once: each runs programs and reads all rules of the host.
const AT_ONCE: usize = 2;
/// Diagnoses that run or wait: of all users, and of each but root, whom nobody may keep out.
const MOST: Share = Share { all: 16, each: 1, reserve: 4 };
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Service<K> {
    reconciler: Reconciler<K>,
    /// Held by a trace: its tables are there once.
    tracing: Arc<Mutex<()>>,
    /// Held by each look at the host.
    turns: Semaphore,
    /// Held by each request to its end.
    slots: Slots,
}

impl<K: Kernel + Inspect> Service<K> {
    pub fn new(reconciler: Reconciler<K>) -> Self {
        Self {
            reconciler,
            tracing: Arc::default(),
            turns: Semaphore::new(AT_ONCE),
            slots: Slots::new(MOST, 0),
        }
    }

    /// Room for one more request of a user.
    fn slot(&self, uid: u32) -> Result<Slot, Fault> {
        self.slots.take(uid).map_err(|full| {
            let message = match full {
                Full::All(most) => format!("{most} diagnoses are running or waiting"),
                Full::Each(_) => format!("a diagnosis of uid {uid} is running"),
            };
            Fault::new(Kind::ResourceExhausted, "TOO_MANY_DIAGNOSES", message).hint(
                "try again when it is over: they take a second or so, and a trace as long as it was told to",
            )
        })
    }

    /// Watches real packets, to the end of the time even if the client goes away, so that nothing is left.
    async fn trace(&self, question: &why::Question, limit: Duration) -> Result<traced::Traced, Fault> {
        let Ok(lock) = Arc::clone(&self.tracing).try_lock_owned() else {
            return Err(Fault::new(Kind::Aborted, "TRACE_RUNNING", "another trace is running")
                .hint("try again when it is over, in a minute at most"));
        };
        let flow = question.trace_flow();
        let reconciler = self.reconciler.clone();
        let work = async move {
            let _lock = lock;
            let lines = reconciler.kernel().trace(&flow, &reconciler.instance(), limit).await?;
            Ok(traced::read(&lines, &flow))
        };
        tokio::spawn(work.in_current_span())
            .await
            .map_err(|error| Fault::internal("the trace ended with a defect").cause(&error))?
    }
}

/// Waits until there is room for one more look at the host.
async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, Fault> {
    match timeout(PATIENCE, turns.acquire()).await {
        Ok(turn) => turn.map_err(|error| Fault::internal("no more looks at the host").cause(&error)),
        Err(_) => Err(Fault::new(
            Kind::ResourceExhausted,
            "TOO_MANY_DIAGNOSES",
            format!("others' diagnoses took all of the {} s that this one waited", PATIENCE.as_secs()),
        )
        .hint("try again, or end some of the `kvmctl doctor` and `kvmctl why` that are running")),
    }
}

#[tonic::async_trait]
impl<K: Kernel + Inspect> wire::diagnose_service_server::DiagnoseService for Service<K> {
    async fn diagnose(
        &self,
        request: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        let _slot = self.slot(Caller::of(&request)?.uid)?;
        let _turn = turn(&self.turns).await?;
        let facts = survey::all(&self.reconciler).await?;
        let findings = diagnose::diagnose(&facts).into_iter().map(convert::finding).collect();
        Ok(Response::new(wire::DiagnoseResponse { findings }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        let caller = Caller::of(&request)?;
        let _slot = self.slot(caller.uid)?;
        let caller = caller.acting_uid();
        let (asked, trace) = convert::asked(request.into_inner())?;
        let turn = turn(&self.turns).await?;
        let mut facts = survey::facts(&self.reconciler).await?;
        let question = why::resolve(&facts, &asked)?;
        if trace.is_some() {
            question.may_watch(&facts, caller)?;
        }
        for _ in 0..ROUNDS {
            let queries = question.queries(&facts);
            survey::ask(self.reconciler.kernel(), &mut facts, queries).await?;
        }
        let steps = why::explain(&facts, &question);
        drop(turn);
        let traced = match trace {
            Some(limit) => Some(self.trace(&question, limit).await?),
            None => None,
        };
        Ok(Response::new(convert::explanation(&question, steps, traced)))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_at_the_host_waits_for_its_turn_but_not_for_ever() {
        let turns = Semaphore::new(AT_ONCE);
        let first = turn(&turns).await.unwrap();
        let _second = turn(&turns).await.unwrap();
        let begun = tokio::time::Instant::now();
        let fault = turn(&turns).await.unwrap_err();
        assert_eq!((fault.kind(), begun.elapsed().as_secs()), (Kind::ResourceExhausted, 20));
        assert!(!fault.hints().is_empty());
        let (third, ()) = tokio::join!(turn(&turns), async { drop(first) });
        assert!(third.is_ok());
    }
}
