//! The passes of an explanation, recorded once as a CUDA graph and replayed from then on.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaGraph, DriverError, result, sys};

use super::device::Handle;
use crate::error::Result;

/// What is known of a plan's passes.
#[derive(Default)]
pub struct Recording {
    /// Changes when memory moves that the graph refers to.
    pub(super) generation: u64,
    pub(super) stage: Stage,
    /// One before the first pass and one after each.
    pub(super) events: Vec<Event>,
}

/// How far the recording of a plan's passes is.
#[derive(Default)]
pub(super) enum Stage {
    /// They have never run. The first run goes step by step, so that libraries load what they need.
    #[default]
    New,
    /// They have run and may be recorded.
    Warm,
    /// They are recorded.
    Recorded(Graph),
    /// They cannot be recorded, for this reason.
    Refused(String),
}

/// A graph that can be launched.
pub(super) struct Graph(CudaGraph);

// SAFETY: the graph is owned by a recording, which one thread uses at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `enqueue` puts on the stream. The stream works as before when that fails.
    pub fn record(handle: &Handle, enqueue: impl FnOnce() -> Result<()>) -> Result<Self> {
        // Other threads may go on as they like.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        handle.stream.begin_capture(mode).map_err(|e| handle.failed("beginning to record", e))?;
        let enqueued = enqueue();
        let graph = handle.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        enqueued?;
        let graph = graph.map_err(|e| handle.failed("recording", e))?;
        let invalid = DriverError(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        let graph = Self(graph.ok_or_else(|| handle.failed("recording", invalid))?);
        graph.0.upload().map_err(|e| handle.failed("uploading the recording", e))?;
        Ok(graph)
    }

    pub fn launch(&self, handle: &Handle) -> Result<()> {
        self.0.launch().map_err(|e| handle.failed("launching the recording", e))
    }
}

/// A point in the stream's work whose time is kept.
pub(super) struct Event {
    event: sys::CUevent,
    handle: Arc<Handle>,
}

// SAFETY: a handle of the driver, which may be used from any thread that has made the context current.
unsafe impl Send for Event {}

impl Event {
    pub fn new(handle: &Arc<Handle>) -> Result<Self> {
        handle.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = event.map_err(|e| handle.failed("creating an event", e))?;
        Ok(Self { event, handle: handle.clone() })
    }

    /// Marks this point of the stream, or of the graph that is being recorded.
    pub fn mark(&self, recorded: bool) -> Result<()> {
        let flags = match recorded {
            // Else the event would only order the graph's own nodes.
            true => sys::CUevent_record_flags::CU_EVENT_RECORD_EXTERNAL as u32,
            false => sys::CUevent_record_flags::CU_EVENT_RECORD_DEFAULT as u32,
        };
        // SAFETY: the event and the stream live.
        let marked = unsafe { sys::cuEventRecordWithFlags(self.event, self.handle.raw(), flags) }.result();
        marked.map_err(|e| self.handle.failed("marking an event", e))
    }

    /// Time from this mark to a later one; both must have been reached.
    pub fn until(&self, later: &Self) -> Result<Duration> {
        // SAFETY: both events live.
        let ms = unsafe { result::event::elapsed(self.event, later.event) };
        let ms = ms.map_err(|e| self.handle.failed("reading a time", e))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.handle.bind();
        // SAFETY: created by `new`, destroyed only here.
        let _ = unsafe { result::event::destroy(self.event) };
    }
}
