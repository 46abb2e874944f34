//! `netd.v1.DiagnoseService`.

use crate::{
    convert::diagnose as convert,
    diagnose::{self, survey, traced, why},
    kernel::{Inspect, Kernel},
    reconciler::Reconciler,
};
use proto::netd::v1 as wire;
use shared::{
    fault::{Fault, Kind},
    socket::peer_of,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

/// Ways out, then ways back: an answer of the kernel leads to one more question.
const ROUNDS: usize = 2;

#[derive(Debug)]
pub struct Service<K> {
    reconciler: Reconciler<K>,
    /// Held by a trace: its tables are there once.
    tracing: Arc<Mutex<()>>,
}

impl<K: Kernel + Inspect> Service<K> {
    pub fn new(reconciler: Reconciler<K>) -> Self {
        Self { reconciler, tracing: Arc::default() }
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

#[tonic::async_trait]
impl<K: Kernel + Inspect> wire::diagnose_service_server::DiagnoseService for Service<K> {
    async fn diagnose(
        &self,
        _: Request<wire::DiagnoseRequest>,
    ) -> Result<Response<wire::DiagnoseResponse>, Status> {
        let facts = survey::all(&self.reconciler).await?;
        let findings = diagnose::diagnose(&facts).into_iter().map(convert::finding).collect();
        Ok(Response::new(wire::DiagnoseResponse { findings }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        let caller = peer_of(&request)?.uid;
        let (asked, trace) = convert::asked(request.into_inner())?;
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
        let traced = match trace {
            Some(limit) => Some(self.trace(&question, limit).await?),
            None => None,
        };
        Ok(Response::new(convert::explanation(&question, steps, traced)))
    }
}
