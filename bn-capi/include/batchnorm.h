// Batch normalization. Made by cbindgen from the sources of bn-capi: not to be edited.
//
// Tensors are addresses of elements of the descriptor's dtype, parameters (gamma, beta, their gradients,
// running statistics) of float, or of double for BATCHNORM_F64, one per channel. "channels" as a size means
// so many entries. Everything is aligned as its type wants it. Tensors without elements may be NULL.
//
// An output may be another operand only where its function says so, and then with the same strides. All
// other outputs are apart from every other operand and from the workspace, or BATCHNORM_ERROR_OVERLAP.
// Strided tensors may interleave, as two slices of the channels of one larger tensor do, if they have the
// same strides and no element in common; with different strides their ranges of memory must be apart.
//
// A refused call has written nothing. All functions may be called from any thread at any time; calls
// that run at once must not share outputs or workspace. The results are the same bits on every
// machine, with every isa, executor and workspace, and whatever rounding mode, flush-to-zero or
// exception masks the calling thread and the executor's have: calls set their own and restore what they
// found (on x86, AArch64, and Arm with the hard-float ABI; not on RISC-V, whose rounding mode must be to nearest).


#ifndef BATCHNORM_H
#define BATCHNORM_H

#include <stddef.h>
#include <stdint.h>

// batch x channels x spatial: each channel of an image is contiguous.
#define BATCHNORM_NCHW 0

// batch x spatial x channels: each position is contiguous.
#define BATCHNORM_NHWC 1

// float. Parameters and running statistics are float.
#define BATCHNORM_F32 0

// double. Parameters and running statistics are double. Not in every firmware archive.
#define BATCHNORM_F64 1

// IEEE half precision, 2 bytes. Parameters and running statistics are float. Not in every firmware
// archive.
#define BATCHNORM_F16 2

// bfloat16, 2 bytes. Parameters and running statistics are float. Not in every firmware archive.
#define BATCHNORM_BF16 3

// z, as it is.
#define BATCHNORM_IDENTITY 0

// 0 where z < 0, else z.
#define BATCHNORM_RELU 1

// act_a*z where z < 0, else z.
#define BATCHNORM_LEAKY_RELU 2

// act_a where z < act_a, act_b where z > act_b, else z. (ReLU6: 0 and 6.) Both are rounded to the dtype.
#define BATCHNORM_CLAMP 3

// The best that this CPU has; with std, the one that the environment variable BN_ISA names, if it is
// set (portable, avx2 or avx512; read once).
#define BATCHNORM_ISA_DETECT 0

// What every CPU of the target has: SSE2, NEON, or scalar code.
#define BATCHNORM_ISA_PORTABLE 1

// AVX2 with F16C.
#define BATCHNORM_ISA_AVX2 2

// AVX-512 F, VL, BW and DQ.
#define BATCHNORM_ISA_AVX512 3

// Flag: allows training on one value per channel, whose variance is 0, so that y = beta (+ residual).
#define BATCHNORM_ALLOW_ONE_VALUE 1

// running = (1 - momentum)*running + momentum*new: PyTorch, cuDNN.
#define BATCHNORM_WEIGH_NEW 0

// running = momentum*running + (1 - momentum)*new: TensorFlow, Keras, ONNX.
#define BATCHNORM_WEIGH_OLD 1

// The plain average of all batches so far; momentum is not looked at, num_batches is needed.
#define BATCHNORM_CUMULATIVE 2

// For batchnorm_workspace_min and _best: batchnorm_forward_training, _moments_accumulate, _normalize.
#define BATCHNORM_OP_FORWARD_TRAINING 0

// For batchnorm_workspace_min and _best: batchnorm_forward_inference and batchnorm_apply.
#define BATCHNORM_OP_INFERENCE 1

// For batchnorm_workspace_min and _best: every batchnorm_backward call.
#define BATCHNORM_OP_BACKWARD 2

// What a call answers: BATCHNORM_OK, or why it was refused. Nothing has been written then, but for
// BATCHNORM_ERROR_EXECUTOR and BATCHNORM_ERROR_INTERNAL.
typedef int32_t batchnorm_status;

// How far apart the parts of an operand are, in elements. 0 means dense. What lies between the parts
// is neither read nor written.
typedef struct {
    // From an image to the next.
    size_t batch;
    // From a channel to the next (NCHW), or from a position to the next (NHWC).
    size_t inner;
} batchnorm_stride;

// Runs the tasks of a call, on any threads: the caller's own job system, or one of
// batchnorm_threads_new.
typedef struct {
    // Calls task(arg, ticket) exactly once for every ticket from 0 to tickets - 1, on any threads, in any
    // order, and returns when all calls have returned. Must not throw or longjmp, and must not return
    // before: the memory behind arg is gone then. Tickets that were not run at all are found, and
    // are BATCHNORM_ERROR_EXECUTOR.
    void (*run)(void *ctx, size_t tickets, void (*task)(void *arg, size_t ticket), void *arg);
    // Given to run as it is.
    void *ctx;
    // How many tickets can usefully run at once. 0 and 1 mean the calling thread: run is not called.
    size_t width;
} batchnorm_executor;

// What a call is about. Clear it (memset, or = {0}), set struct_size and what differs from 0.
//
// A tensor is batch x channels x spatial elements in the order that the layout says; its statistics
// are per channel, over the batch and all spatial positions. Dense layers (N x C) are BATCHNORM_NHWC
// with spatial = 1.
typedef struct {
    // sizeof(batchnorm_desc).
    uint32_t struct_size;
    // BATCHNORM_NCHW or BATCHNORM_NHWC.
    uint32_t layout;
    // The type of the elements: BATCHNORM_F32, ...
    uint32_t dtype;
    // What is applied to the result: BATCHNORM_IDENTITY, ...
    uint32_t activation;
    // The instructions to use: BATCHNORM_ISA_DETECT, ... All give the same bits.
    uint32_t isa;
    // BATCHNORM_ALLOW_ONE_VALUE, or 0.
    uint32_t flags;
    // The slope (BATCHNORM_LEAKY_RELU; finite, not negative), or the lower bound (BATCHNORM_CLAMP).
    double act_a;
    // The upper bound (BATCHNORM_CLAMP).
    double act_b;
    // Added to the variance; finite, not negative.
    double epsilon;
    // Images. 0 is legal where no statistics are made of them.
    size_t batch;
    // Channels: at least 1.
    size_t channels;
    // Positions of an image: height x width, or 1.
    size_t spatial;
    // Strides of x.
    batchnorm_stride x;
    // Strides of y.
    batchnorm_stride y;
    // Strides of residual.
    batchnorm_stride residual;
    // Strides of dy.
    batchnorm_stride dy;
    // Strides of dx.
    batchnorm_stride dx;
    // Strides of dresidual.
    batchnorm_stride dresidual;
    // What runs the call. NULL: the calling thread.
    const batchnorm_executor *executor;
    // Memory to work with, aligned as uint64_t is; need not be cleared, holds nothing of use afterwards.
    // NULL: the call allocates it (without std: BATCHNORM_ERROR_WORKSPACE).
    void *workspace;
    // Its size in bytes: at least batchnorm_workspace_min. Not looked at where workspace is NULL.
    size_t workspace_bytes;
} batchnorm_desc;

// Moments of a channel: the count, the mean, and the sum of squared deviations m2 = sum (x - mean)^2.
// The biased variance is m2/count. All zeros mean "nothing seen yet".
typedef struct {
    // Values so far.
    uint64_t count;
    // Their mean.
    double mean;
    // The sum of their squared deviations from it.
    double m2;
} batchnorm_moments;

// What inference needs of a channel: y = (x - mean)*scale + shift. May live in flash.
typedef struct {
    // The running mean.
    float mean;
    // gamma/sqrt(running variance + epsilon).
    float scale;
    // beta.
    float shift;
} batchnorm_prepared;

// Sums of a channel that a backward pass is made of: sum dy, and sum dy*(x - mean). The sums of shards of
// a batch add up, entry by entry.
typedef struct {
    // sum dy: the gradient of beta.
    double dbeta;
    // sum dy*(x - mean): the gradient of gamma times sqrt(variance + epsilon).
    double dot;
} batchnorm_sums;

// Done.
#define BATCHNORM_OK 0

// A pointer is NULL that must not be.
#define BATCHNORM_ERROR_NULL 1

// struct_size is not sizeof(batchnorm_desc): compiled against another header.
#define BATCHNORM_ERROR_STRUCT_SIZE 2

// A layout, dtype, activation, isa, flag, rule or op that does not exist.
#define BATCHNORM_ERROR_ENUM 3

// A dtype that this build was made without, or that the call has no form for (prepared: double).
#define BATCHNORM_ERROR_DTYPE 4

// Instructions that this CPU or operating system lacks (or BN_ISA names none).
#define BATCHNORM_ERROR_ISA 5

// No channels.
#define BATCHNORM_ERROR_CHANNELS 6

// Sizes that are more than memory can hold.
#define BATCHNORM_ERROR_SIZE 7

// epsilon is negative, infinite or NaN.
#define BATCHNORM_ERROR_EPSILON 8

// momentum is outside 0 ... 1, or NaN.
#define BATCHNORM_ERROR_MOMENTUM 9

// act_a, act_b: a slope that is negative, or infinite in the type of gamma, bounds in the wrong order, NaN.
#define BATCHNORM_ERROR_ACTIVATION 10

// Strides at which elements of an operand overlap, or that reach beyond memory.
#define BATCHNORM_ERROR_STRIDE 11

// A pointer that is not aligned for what it points to.
#define BATCHNORM_ERROR_ALIGNMENT 12

// An output overlaps another operand in a way that is not allowed.
#define BATCHNORM_ERROR_OVERLAP 13

// The workspace is smaller than batchnorm_workspace_min (or NULL, in builds that cannot allocate).
#define BATCHNORM_ERROR_WORKSPACE 14

// Fewer than two values per channel (see BATCHNORM_ALLOW_ONE_VALUE).
#define BATCHNORM_ERROR_TOO_FEW_VALUES 15

// Moments of other counts than this x has, in a one-call backward pass.
#define BATCHNORM_ERROR_COUNT 16

// x cannot be told from y: the activation has no inverse, or a gamma is 0.
#define BATCHNORM_ERROR_NOT_INVERTIBLE 17

// A channel's constants leave the range of float; batchnorm_forward_inference can calculate with them.
#define BATCHNORM_ERROR_UNPREPARABLE 18

// A folded weight or bias would not be finite.
#define BATCHNORM_ERROR_UNFOLDABLE 19

// No memory for the workspace.
#define BATCHNORM_ERROR_MEMORY 20

// The executor did not run each ticket once. The outputs are not complete.
#define BATCHNORM_ERROR_EXECUTOR 21

// A mistake of the library. The outputs are not complete.
#define BATCHNORM_ERROR_INTERNAL 22

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Training: y = act(gamma*(x - mean)/sqrt(variance + epsilon) + beta + residual) with the mean and the
// biased variance of this batch, which are written to moments (for the backward pass, and for
// batchnorm_running_update).
//
// x, residual, y: tensors. gamma, beta: channels parameters. moments: channels.
// NULL: residual (none), gamma (1), beta (0). y may be x, or residual, or both.
// Needs two values per channel, or BATCHNORM_ALLOW_ONE_VALUE (else BATCHNORM_ERROR_TOO_FEW_VALUES).
batchnorm_status batchnorm_forward_training(const batchnorm_desc *desc,
                                            const void *x,
                                            const void *residual,
                                            const void *gamma,
                                            const void *beta,
                                            void *y,
                                            batchnorm_moments *moments);

// Inference: y = act(gamma*(x - running_mean)/sqrt(running_var + epsilon) + beta + residual).
//
// x, residual, y: tensors. gamma, beta, running_mean, running_var: channels parameters.
// NULL: residual (none), gamma (1), beta (0). y may be x, or residual, or both. batch may be 0.
batchnorm_status batchnorm_forward_inference(const batchnorm_desc *desc,
                                             const void *x,
                                             const void *residual,
                                             const void *gamma,
                                             const void *beta,
                                             const void *running_mean,
                                             const void *running_var,
                                             void *y);

// The part of inference that does not depend on x, for batchnorm_apply: once, perhaps on another machine.
//
// gamma, beta, running_mean, running_var: channels parameters (float). prepared: channels.
// NULL: gamma (1), beta (0). Of the descriptor only the shape, dtype and epsilon matter.
// Not for BATCHNORM_F64 (BATCHNORM_ERROR_DTYPE). BATCHNORM_ERROR_UNPREPARABLE where a channel's
// constants leave the range of float.
batchnorm_status batchnorm_prepare(const batchnorm_desc *desc,
                                   const void *gamma,
                                   const void *beta,
                                   const void *running_mean,
                                   const void *running_var,
                                   batchnorm_prepared *prepared);

// The part of inference that depends on x, without double: the same bits as batchnorm_forward_inference.
//
// x, residual, y: tensors. prepared: channels, from batchnorm_prepare.
// NULL: residual (none). y may be x, or residual, or both. Not for BATCHNORM_F64 (BATCHNORM_ERROR_DTYPE).
batchnorm_status batchnorm_apply(const batchnorm_desc *desc,
                                 const void *x,
                                 const void *residual,
                                 const batchnorm_prepared *prepared,
                                 void *y);

// The gradients of batchnorm_forward_training: dx, dresidual, dgamma and dbeta, any of them.
//
// x, dy, dx, dresidual: tensors; y: the tensor that the forward pass wrote. gamma, dgamma, dbeta:
// channels parameters. moments: channels, as the forward pass wrote them for this x
// (else BATCHNORM_ERROR_COUNT: for the moments of more than this x there are batchnorm_backward_sums
// and batchnorm_backward_apply).
// NULL: y (where activation is BATCHNORM_IDENTITY), gamma (1), and what is not wanted of dx, dresidual,
// dgamma and dbeta. dx may be dy, or dresidual may. dgamma and dbeta are overwritten.
batchnorm_status batchnorm_backward(const batchnorm_desc *desc,
                                    const void *x,
                                    const void *y,
                                    const void *dy,
                                    const void *gamma,
                                    const batchnorm_moments *moments,
                                    void *dx,
                                    void *dresidual,
                                    void *dgamma,
                                    void *dbeta);

// The gradients of batchnorm_forward_inference, whose statistics are constants ("frozen").
//
// As batchnorm_backward, with running_mean and running_var (channels parameters) in place of moments.
batchnorm_status batchnorm_backward_inference(const batchnorm_desc *desc,
                                              const void *x,
                                              const void *y,
                                              const void *dy,
                                              const void *gamma,
                                              const void *running_mean,
                                              const void *running_var,
                                              void *dx,
                                              void *dresidual,
                                              void *dgamma,
                                              void *dbeta);

// batchnorm_backward without x, from the y of a forward pass that may have been in place and had no
// residual. The error of the gradients is 1 + |beta/gamma| times that of batchnorm_backward.
//
// y, dy, dx: tensors. gamma, beta, dgamma, dbeta: channels parameters. moments: channels, as the forward
// pass wrote them. The activation is BATCHNORM_IDENTITY, or BATCHNORM_LEAKY_RELU with a slope above 0,
// and no gamma is 0 (else BATCHNORM_ERROR_NOT_INVERTIBLE).
// NULL: gamma (1), beta (0), and what is not wanted of dx, dgamma and dbeta. dx may be dy.
batchnorm_status batchnorm_backward_from_output(const batchnorm_desc *desc,
                                                const void *y,
                                                const void *dy,
                                                const void *gamma,
                                                const void *beta,
                                                const batchnorm_moments *moments,
                                                void *dx,
                                                void *dgamma,
                                                void *dbeta);

// The first stage of the forward pass: takes x into moments, which are zeroed to start with. So
// statistics of several batches, shards or a whole data set are those of several calls.
//
// x: tensor. moments: channels, read and written. batch may be 0.
batchnorm_status batchnorm_moments_accumulate(const batchnorm_desc *desc,
                                              const void *x,
                                              batchnorm_moments *moments);

// Takes the moments of a shard into others, channel by channel. Merge in a fixed order where bits matter.
//
// into, from: channels; they must not overlap.
batchnorm_status batchnorm_moments_merge(size_t channels,
                                         batchnorm_moments *into,
                                         const batchnorm_moments *from);

// The second stage of the forward pass: y from x and moments, which may be those of more than this x.
//
// As batchnorm_forward_training, except that moments are read.
batchnorm_status batchnorm_normalize(const batchnorm_desc *desc,
                                     const void *x,
                                     const void *residual,
                                     const void *gamma,
                                     const void *beta,
                                     const batchnorm_moments *moments,
                                     void *y);

// The first stage of the backward pass: sums over this x and dy, about moments that may be those of more
// than this x. The sums of shards (those whose moments were merged) add up.
//
// x, dy: tensors; y: the tensor that the forward pass wrote. moments: channels. sums: channels, overwritten.
// NULL: y (where activation is BATCHNORM_IDENTITY).
batchnorm_status batchnorm_backward_sums(const batchnorm_desc *desc,
                                         const void *x,
                                         const void *y,
                                         const void *dy,
                                         const batchnorm_moments *moments,
                                         batchnorm_sums *sums);

// The second stage of the backward pass: dx and dresidual from moments and sums, which may be those of
// more than this x. (The gradient of beta is sums.dbeta, that of gamma is
// sums.dot/sqrt(m2/count + epsilon).)
//
// x, dy, dx, dresidual: tensors; y: the tensor that the forward pass wrote. gamma: channels parameters.
// moments, sums: channels.
// NULL: y (where activation is BATCHNORM_IDENTITY), gamma (1), and what is not wanted of dx and
// dresidual. dx may be dy, or dresidual may.
batchnorm_status batchnorm_backward_apply(const batchnorm_desc *desc,
                                          const void *x,
                                          const void *y,
                                          const void *dy,
                                          const void *gamma,
                                          const batchnorm_moments *moments,
                                          const batchnorm_sums *sums,
                                          void *dx,
                                          void *dresidual);

// Takes a batch's moments into running statistics. Channels whose statistics, or updated values, are
// not finite, or that have no values, keep their old values; skipped says how many did.
//
// dtype: that of the elements, which tells the parameters' type. rule: BATCHNORM_WEIGH_NEW,
// BATCHNORM_WEIGH_OLD or BATCHNORM_CUMULATIVE. momentum: from 0 to 1. unbiased: 0 for the biased
// variance m2/n (Keras, ONNX), 1 for m2/(n - 1) (PyTorch). num_batches: one number, increased by 1.
// running_mean, running_var: channels parameters, read and written.
// NULL: num_batches (except for BATCHNORM_CUMULATIVE), skipped.
batchnorm_status batchnorm_running_update(uint32_t dtype,
                                          size_t channels,
                                          const batchnorm_moments *moments,
                                          uint32_t rule,
                                          double momentum,
                                          uint32_t unbiased,
                                          uint64_t *num_batches,
                                          void *running_mean,
                                          void *running_var,
                                          size_t *skipped);

// Folds batch normalization into the convolution or dense layer before it.
//
// prepared: outputs, one for each output of the layer. weight: outputs x inputs_per_output, outputs
// first (a depthwise 3x3 convolution has 9 inputs per output). bias: outputs; bring zeros where the layer has
// none. weight and bias are changed in place. BATCHNORM_ERROR_UNFOLDABLE where one would not be finite.
batchnorm_status batchnorm_fold_before(const batchnorm_prepared *prepared,
                                       size_t outputs,
                                       size_t inputs_per_output,
                                       float *weight,
                                       float *bias);

// Folds batch normalization without activation into the dense layer or convolution behind it, which must not
// pad.
//
// prepared: channels, one for each channel that the layer reads. weight: outputs x channels x taps,
// outputs first (dense: 1 tap). bias: outputs; bring zeros where the layer has none. weight and bias are
// changed in place. BATCHNORM_ERROR_UNFOLDABLE where one would not be finite.
batchnorm_status batchnorm_fold_after(const batchnorm_prepared *prepared,
                                      size_t outputs,
                                      size_t channels,
                                      size_t taps,
                                      float *weight,
                                      float *bias);

// Bytes of workspace that an operation (BATCHNORM_OP_...) needs: at most 8 KB. 0 where the descriptor or
// the operation is refused; the call itself says why.
size_t batchnorm_workspace_min(const batchnorm_desc *desc, uint32_t op);

// Bytes of workspace beyond which more does not help, with the descriptor's executor. Any size from
// batchnorm_workspace_min up gives the same bits. 0 where the descriptor or the operation is refused.
size_t batchnorm_workspace_best(const batchnorm_desc *desc, uint32_t op);

// What a status means, in English. Never NULL.
const char *batchnorm_status_message(batchnorm_status status);

// The name of instructions (BATCHNORM_ISA_...): "portable", "avx2" or "avx512"; of BATCHNORM_ISA_DETECT, of
// those that it chooses here. "unknown" where there is none. Never NULL.
const char *batchnorm_isa_name(uint32_t isa);

// The library's version: major*65536 + minor*256 + patch.
uint32_t batchnorm_version(void);

// Changes when any bit of any result does.
uint32_t batchnorm_bits_version(void);

// Runs the conformance set (some hundred small batch normalizations) here and now with these instructions:
// one hash of the bits of all results, which is the same on every machine (of builds with the same
// dtypes). 0 where there are no such instructions. Takes 11 KB of stack in builds without std.
uint64_t batchnorm_conformance_hash(uint32_t isa);

// A pool of so many threads of its own; 0: as many as there are logical CPUs. NULL on failure, and always
// in builds without std. For any number of descriptors, threads and calls at once; a call from a thread
// outside of the pool waits for it.
const batchnorm_executor *batchnorm_threads_new(size_t threads);

// Ends a pool of batchnorm_threads_new and joins its threads, so that the library may be unloaded. No
// call may be running on it; not to be called from one of its threads. NULL: nothing.
void batchnorm_threads_free(const batchnorm_executor *executor);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BATCHNORM_H */
