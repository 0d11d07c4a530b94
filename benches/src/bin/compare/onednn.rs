//! oneDNN 3 through its C API, loaded at run time.
//!
//! The declarations are those of `dnnl.h`, version 3.2; they have not changed since.

use anyhow::{Context, Result, bail};
use bn_benches::data::{Data, EPSILON};
use bn_benches::{Operation, Subject};
use bn_core::{Layout, Shape};
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};
use std::rc::Rc;

/// Any of the library's objects.
type Handle = *mut c_void;
type Status = c_int;

const CPU: c_int = 1;
const IN_ORDER: c_uint = 1;
const F32: c_int = 3;
const FORWARD_TRAINING: c_int = 64;
const FORWARD_INFERENCE: c_int = 96;
const BACKWARD: c_int = 128;
const USE_GLOBAL_STATS: c_uint = 1;
const USE_SCALE: c_uint = 2;
const USE_SHIFT: c_uint = 4;
const QUERY_IMPLEMENTATION: c_int = 8;
/// DNNL_ARG_*.
mod arg {
    pub const SRC: i32 = 1;
    pub const DST: i32 = 17;
    pub const MEAN: i32 = 49;
    pub const VARIANCE: i32 = 50;
    pub const SCALE: i32 = 51;
    pub const SHIFT: i32 = 52;
    pub const DIFF_SRC: i32 = 129;
    pub const DIFF_DST: i32 = 145;
    pub const DIFF_SCALE: i32 = 255;
    pub const DIFF_SHIFT: i32 = 256;
}

#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
    hash: *const c_char,
    cpu_runtime: c_uint,
    gpu_runtime: c_uint,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct ExecArg {
    arg: c_int,
    memory: Handle,
}

type Destroy = unsafe extern "C" fn(Handle) -> Status;

/// The functions that are used.
struct Api {
    engine_create: unsafe extern "C" fn(*mut Handle, c_int, usize) -> Status,
    stream_create: unsafe extern "C" fn(*mut Handle, Handle, c_uint) -> Status,
    stream_wait: unsafe extern "C" fn(Handle) -> Status,
    desc_create: unsafe extern "C" fn(*mut Handle, c_int, *const i64, c_int, *const i64) -> Status,
    desc_destroy: Destroy,
    memory_create: unsafe extern "C" fn(*mut Handle, Handle, Handle, *mut c_void) -> Status,
    memory_destroy: Destroy,
    forward_create:
        unsafe extern "C" fn(*mut Handle, Handle, c_int, Handle, Handle, f32, c_uint, *const c_void) -> Status,
    backward_create: unsafe extern "C" fn(
        *mut Handle,
        Handle,
        c_int,
        Handle,
        Handle,
        Handle,
        f32,
        c_uint,
        Handle,
        *const c_void,
    ) -> Status,
    primitive_desc_query: unsafe extern "C" fn(Handle, c_int, c_int, *mut c_void) -> Status,
    primitive_desc_destroy: Destroy,
    primitive_create: unsafe extern "C" fn(*mut Handle, Handle) -> Status,
    primitive_execute: unsafe extern "C" fn(Handle, Handle, c_int, *const ExecArg) -> Status,
    primitive_destroy: Destroy,
}

/// A loaded library, with an engine and a stream on the CPU.
pub struct OneDnn {
    api: Api,
    engine: Handle,
    stream: Handle,
    /// As in records.
    pub name: String,
    /// With the revision.
    pub version: String,
}

fn done(status: Status, what: &str) -> Result<()> {
    if status == 0 { Ok(()) } else { bail!("oneDNN: {what}: status {status}") }
}

impl OneDnn {
    /// Each of the libraries, once.
    pub fn load_all<'p>(paths: impl Iterator<Item = &'p PathBuf>) -> Result<Vec<Rc<Self>>> {
        let mut paths: Vec<_> = paths.collect();
        paths.dedup();
        paths.into_iter().map(|path| Self::load(path)).collect()
    }

    /// Loads `libdnnl.so.3`, or what it is called. It stays loaded.
    fn load(path: &Path) -> Result<Rc<Self>> {
        // SAFETY: the user says that this is oneDNN.
        let library = unsafe { Library::new(path) }.with_context(|| format!("loading {}", path.display()))?;
        // Its threads live as long as the process.
        let library: &'static Library = Box::leak(Box::new(library));
        macro_rules! get {
            ($name:literal) => {
                // SAFETY: the types are those of dnnl.h.
                *unsafe { library.get(concat!("dnnl_", $name, "\0").as_bytes()) }
                    .with_context(|| format!("dnnl_{} of {}", $name, path.display()))?
            };
        }
        let version: unsafe extern "C" fn() -> *const Version = get!("version");
        // SAFETY: it returns a pointer to a constant.
        let version = unsafe { &*version() };
        if version.major != 3 {
            bail!("{} is oneDNN {}, not 3", path.display(), version.major);
        }
        let api = Api {
            engine_create: get!("engine_create"),
            stream_create: get!("stream_create"),
            stream_wait: get!("stream_wait"),
            desc_create: get!("memory_desc_create_with_strides"),
            desc_destroy: get!("memory_desc_destroy"),
            memory_create: get!("memory_create"),
            memory_destroy: get!("memory_destroy"),
            forward_create: get!("batch_normalization_forward_primitive_desc_create"),
            backward_create: get!("batch_normalization_backward_primitive_desc_create"),
            primitive_desc_query: get!("primitive_desc_query"),
            primitive_desc_destroy: get!("primitive_desc_destroy"),
            primitive_create: get!("primitive_create"),
            primitive_execute: get!("primitive_execute"),
            primitive_destroy: get!("primitive_destroy"),
        };
        let (mut engine, mut stream) = (null_mut(), null_mut());
        // SAFETY: out-parameters of the right types.
        unsafe {
            done((api.engine_create)(&mut engine, CPU, 0), "engine")?;
            done((api.stream_create)(&mut stream, engine, IN_ORDER), "stream")?;
        }
        let runtime = match version.cpu_runtime {
            1 => "sequential",
            2 => "omp",
            4 => "tbb",
            8 => "threadpool",
            256 | 512 => "sycl",
            _ => "unknown",
        };
        let hash = if version.hash.is_null() {
            String::new()
        } else {
            // SAFETY: a C string that lives as long as the library.
            unsafe { CStr::from_ptr(version.hash) }.to_string_lossy().into_owned()
        };
        let Version { major, minor, patch, .. } = version;
        let name = format!("onednn-{major}.{minor}-{runtime}");
        let version = format!("{major}.{minor}.{patch} ({runtime}, {hash})");
        Ok(Rc::new(OneDnn { api, engine, stream, name, version }))
    }

    /// Forward, backward and inference on this data, whose tensors must stay where they are.
    pub fn subjects<'a>(self: &Rc<Self>, data: &mut Data) -> Result<Vec<Subject<'a>>> {
        let tensor = Desc::tensor(self, data.shape)?;
        let channels = Desc::new(self, &[data.shape.channels()], &[1])?;
        let mut statistics = [vec![0.0f32; data.shape.channels()], vec![0.0f32; data.shape.channels()]];
        let affine = USE_SCALE | USE_SHIFT;

        let training = self.forward(FORWARD_TRAINING, &tensor, affine)?;
        let inference = self.forward(FORWARD_INFERENCE, &tensor, affine | USE_GLOBAL_STATS)?;
        let mut backward = null_mut();
        // SAFETY: live descriptors; the attributes may be null.
        let status = unsafe {
            (self.api.backward_create)(
                &mut backward,
                self.engine,
                BACKWARD,
                tensor.0,
                tensor.0,
                tensor.0,
                EPSILON,
                affine,
                training.0,
                null(),
            )
        };
        done(status, "backward primitive descriptor")?;
        let backward = Owned(backward, self.clone(), self.api.primitive_desc_destroy);

        let (x, y, dy, dx) = (data.x.as_mut_ptr(), data.y.as_mut_ptr(), data.dy.as_mut_ptr(), data.dx.as_mut_ptr());
        let [mean, variance] = statistics.each_mut().map(|s| s.as_mut_ptr());
        let parameters = [(arg::SCALE, data.gamma.as_mut_ptr()), (arg::SHIFT, data.beta.as_mut_ptr())];
        let forward =
            self.primitive(&training, &[(arg::SRC, x), (arg::DST, y)], &tensor)?.with(&parameters, &channels)?;
        let forward = forward.with(&[(arg::MEAN, mean), (arg::VARIANCE, variance)], &channels)?;
        let running = [(arg::MEAN, data.mean.as_mut_ptr()), (arg::VARIANCE, data.var.as_mut_ptr())];
        let inference = self
            .primitive(&inference, &[(arg::SRC, x), (arg::DST, y)], &tensor)?
            .with(&parameters, &channels)?
            .with(&running, &channels)?;
        let gradients = [(arg::DIFF_SCALE, data.dgamma.as_mut_ptr()), (arg::DIFF_SHIFT, data.dbeta.as_mut_ptr())];
        let backward = self
            .primitive(&backward, &[(arg::SRC, x), (arg::DIFF_DST, dy), (arg::DIFF_SRC, dx)], &tensor)?
            .with(&parameters[..1], &channels)?
            .with(&[(arg::MEAN, mean), (arg::VARIANCE, variance)], &channels)?
            .with(&gradients, &channels)?;
        // The backward pass reads what the forward pass wrote.
        forward.run()?;
        let statistics = Rc::new(statistics);
        let subject = |operation, primitive: Primitive| {
            let statistics = statistics.clone();
            Subject {
                library: self.name.clone(),
                variant: primitive.implementation.clone(),
                operation,
                workspace: 0,
                call: Box::new(move |data: &mut Data| {
                    // What the primitive writes to.
                    assert!(data.x.as_mut_ptr() == x && data.y.as_mut_ptr() == y);
                    let _alive = &statistics;
                    primitive.run()
                }),
            }
        };
        Ok(vec![
            subject(Operation::Forward, forward),
            subject(Operation::Backward, backward),
            subject(Operation::Inference, inference),
        ])
    }

    fn forward(self: &Rc<Self>, kind: c_int, tensor: &Desc, flags: c_uint) -> Result<Owned> {
        let mut desc = null_mut();
        // SAFETY: live descriptors; the attributes may be null.
        let status = unsafe {
            (self.api.forward_create)(&mut desc, self.engine, kind, tensor.0, tensor.0, EPSILON, flags, null())
        };
        done(status, "forward primitive descriptor")?;
        Ok(Owned(desc, self.clone(), self.api.primitive_desc_destroy))
    }

    fn primitive(self: &Rc<Self>, desc: &Owned, args: &[(i32, *mut f32)], of: &Desc) -> Result<Primitive> {
        let (mut primitive, mut name) = (null_mut(), null::<c_char>());
        // SAFETY: a live descriptor; the answer to this query is a C string that lives as long as it.
        let implementation = unsafe {
            done((self.api.primitive_create)(&mut primitive, desc.0), "primitive")?;
            let to = (&raw mut name).cast();
            done((self.api.primitive_desc_query)(desc.0, QUERY_IMPLEMENTATION, 0, to), "implementation")?;
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        let primitive = Owned(primitive, self.clone(), self.api.primitive_destroy);
        Primitive { primitive, implementation, memories: Vec::new(), args: Vec::new() }.with(args, of)
    }
}

/// An object, destroyed at the end.
struct Owned(Handle, Rc<OneDnn>, Destroy);

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the function's counterpart, and not used any more.
        unsafe { (self.2)(self.0) };
    }
}

/// Where the elements of a tensor are.
struct Desc(Handle, #[allow(dead_code, reason = "destroys it")] Owned);

impl Desc {
    fn new(library: &Rc<OneDnn>, dims: &[usize], strides: &[usize]) -> Result<Self> {
        let [dims, strides] = [dims, strides].map(|d| d.iter().map(|&n| n as i64).collect::<Vec<_>>());
        let mut desc = null_mut();
        // SAFETY: both arrays have so many entries.
        let status =
            unsafe { (library.api.desc_create)(&mut desc, dims.len() as c_int, dims.as_ptr(), F32, strides.as_ptr()) };
        done(status, "memory descriptor")?;
        Ok(Desc(desc, Owned(desc, library.clone(), library.api.desc_destroy)))
    }

    /// nhwc or nchw, with one spatial dimension as 1 × so many: what oneDNN knows best.
    fn tensor(library: &Rc<OneDnn>, shape: Shape) -> Result<Self> {
        let (n, c, s) = (shape.batch(), shape.channels(), shape.spatial());
        let strides = match shape.layout() {
            Layout::Nhwc => [c * s, 1, c * s, c],
            _ => [c * s, s, s, 1],
        };
        Self::new(library, &[n, c, 1, s], &strides)
    }
}

/// A primitive with its arguments.
struct Primitive {
    primitive: Owned,
    implementation: String,
    memories: Vec<Owned>,
    args: Vec<ExecArg>,
}

impl Primitive {
    fn with(mut self, args: &[(i32, *mut f32)], of: &Desc) -> Result<Self> {
        let library = self.primitive.1.clone();
        for &(arg, at) in args {
            let mut memory = null_mut();
            // SAFETY: a live descriptor, and a buffer of its size.
            let status = unsafe { (library.api.memory_create)(&mut memory, of.0, library.engine, at.cast()) };
            done(status, "memory")?;
            self.memories.push(Owned(memory, library.clone(), library.api.memory_destroy));
            self.args.push(ExecArg { arg, memory });
        }
        Ok(self)
    }

    fn run(&self) -> Result<()> {
        let library = &self.primitive.1;
        // SAFETY: live objects; the buffers behind them are the subject's and the data's.
        unsafe {
            let count = self.args.len() as c_int;
            let primitive = self.primitive.0;
            done((library.api.primitive_execute)(primitive, library.stream, count, self.args.as_ptr()), "execution")?;
            done((library.api.stream_wait)(library.stream), "waiting")
        }
    }
}
