//! The one exchange of a pass: every rank brings its share of each channel, and all leave with the same
//! merged ones.

use crate::error::{Error, Problem, Setting};
use crate::header::{self, Header, WORDS};
use bn_core::{GradSums, Moments};
use mpi::Rank;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// Which way messages take. No bit of any result depends on it: either way the shares of a channel are
/// merged one after the other in the order of the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Exchange {
    /// Whichever is quicker for these numbers of ranks and channels, by the model of docs/cost.md: the
    /// same on all ranks.
    #[default]
    Auto,
    /// Everything to everybody (one `MPI_Allgather`), and every rank merges all channels: least latency.
    /// Each rank receives 16 bytes per channel from each rank.
    Gather,
    /// Each rank merges a part of the channels (`MPI_Alltoall`), which it then hands to everybody
    /// (`MPI_Allgather`): least data. Each rank receives 32 bytes per channel and 16 per rank, however
    /// many ranks there are.
    Scatter,
}

impl Exchange {
    /// Bytes that all ranks together bring, above which [`Exchange::Auto`] scatters: there, merging all
    /// channels of all ranks on every rank begins to take longer than a second collective. Where that is depends on
    /// the network: docs/cost.md.
    const GATHER_MAX: usize = 16 << 10;

    /// What `Auto` stands for, with so many ranks and channels.
    pub fn choose(self, ranks: usize, channels: usize) -> Exchange {
        match self {
            // With two ranks a scatter moves as much.
            Exchange::Auto if ranks <= 2 || ranks.saturating_mul(channels).saturating_mul(16) <= Self::GATHER_MAX => {
                Exchange::Gather
            }
            Exchange::Auto => Exchange::Scatter,
            chosen => chosen,
        }
    }
}

/// Words of a message besides channels: the fingerprint of the call's header, and the count of values.
const PREFIX: usize = 2;
/// Words of a channel.
const PAIR: usize = 2;

/// What a rank brings of a channel: two numbers, of a count that is the same for all channels.
pub(crate) trait Share: Copy + Default {
    fn pair(&self) -> [f64; PAIR];
    fn take_in(&mut self, count: u64, pair: [f64; PAIR]);
    fn of(count: u64, pair: [f64; PAIR]) -> Self;
}

impl Share for Moments {
    fn pair(&self) -> [f64; PAIR] {
        [self.mean, self.m2]
    }
    fn take_in(&mut self, count: u64, pair: [f64; PAIR]) {
        self.merge(&Self::of(count, pair));
    }
    fn of(count: u64, [mean, m2]: [f64; PAIR]) -> Self {
        Moments { count, mean, m2 }
    }
}

impl Share for GradSums {
    fn pair(&self) -> [f64; PAIR] {
        [self.dbeta, self.dot]
    }
    fn take_in(&mut self, count: u64, pair: [f64; PAIR]) {
        self.merge(&Self::of(count, pair));
    }
    fn of(_: u64, [dbeta, dot]: [f64; PAIR]) -> Self {
        GradSums { dbeta, dot }
    }
}

/// The memory and the way of a layer's messages.
pub(crate) struct Exchanger {
    way: Exchange,
    ranks: usize,
    channels: usize,
    /// Whether ranks make sure that they call the same before they send messages of this layer's length.
    check_calls: bool,
    send: Vec<u64>,
    receive: Vec<u64>,
    prefixes: Vec<u64>,
}

impl Exchanger {
    /// For messages between so many ranks about so many channels.
    pub(crate) fn new(way: Exchange, check_calls: bool, ranks: usize, channels: usize) -> Result<Self, Problem> {
        let way = way.choose(ranks, channels);
        let (block, blocks) = match way {
            Exchange::Scatter => (PREFIX + PAIR * channels.div_ceil(ranks), ranks),
            _ => (channels.saturating_mul(PAIR).saturating_add(PREFIX), 1),
        };
        let received = block.saturating_mul(ranks);
        if i32::try_from(received).is_err() {
            return Err(Problem::MessageTooLong { words: received as u64 });
        }
        let (send, receive, prefixes) = (filled(block * blocks)?, filled(received)?, filled(PREFIX * ranks)?);
        Ok(Exchanger { way, ranks, channels, check_calls, send, receive, prefixes })
    }

    /// The way that was chosen.
    pub(crate) fn way(&self) -> Exchange {
        self.way
    }

    /// Merges the shares of all ranks, and returns how many values per channel they are of.
    ///
    /// All ranks call this, also one whose header has a problem; what it brings then does not matter.
    /// All return the same.
    pub(crate) fn run<S: Share>(
        &mut self,
        comm: &dyn Communicator,
        header: &Header,
        count: u64,
        own: &[S],
        merged: &mut [S],
    ) -> Result<u64, Error> {
        let prefix = [header.fingerprint(), count];
        if self.check_calls {
            comm.all_gather_into(&prefix[..], &mut self.prefixes[..]);
            agree(comm, header, &self.prefixes, PREFIX)?;
        }
        match self.way {
            Exchange::Scatter => self.scatter(comm, header, prefix, own, merged),
            _ => self.gather(comm, header, prefix, own, merged),
        }
    }

    fn gather<S: Share>(
        &mut self,
        comm: &dyn Communicator,
        header: &Header,
        prefix: [u64; PREFIX],
        own: &[S],
        merged: &mut [S],
    ) -> Result<u64, Error> {
        pack(&mut self.send, prefix, own);
        comm.all_gather_into(&self.send[..], &mut self.receive[..]);
        let block = self.send.len();
        let total = agree(comm, header, &self.receive, block)?;
        merge(&self.receive, block, merged);
        Ok(total)
    }

    fn scatter<S: Share>(
        &mut self,
        comm: &dyn Communicator,
        header: &Header,
        prefix: [u64; PREFIX],
        own: &[S],
        merged: &mut [S],
    ) -> Result<u64, Error> {
        let part = self.channels.div_ceil(self.ranks);
        let block = PREFIX + PAIR * part;
        for (rank, message) in self.send.chunks_exact_mut(block).enumerate() {
            let (first, end) = ((rank * part).min(own.len()), ((rank + 1) * part).min(own.len()));
            pack(message, prefix, &own[first..end]);
        }
        comm.all_to_all_into(&self.send[..], &mut self.receive[..]);
        let total = agree(comm, header, &self.receive, block)?;
        // This rank's channels, merged in place of the others'; the last ranks may have none.
        let first = (comm.rank() as usize * part).min(merged.len());
        let end = (first + part).min(merged.len());
        merge(&self.receive, block, &mut merged[first..end]);
        let (send, receive) = (&mut self.send[..PAIR * part], &mut self.receive[..self.ranks * PAIR * part]);
        pack_pairs(send, &merged[first..end]);
        comm.all_gather_into(&*send, receive);
        for (to, from) in merged.iter_mut().zip(receive.chunks_exact(PAIR)) {
            *to = S::of(total, unpack(from));
        }
        Ok(total)
    }
}

/// Everybody's header, of ranks that make a layer together: what a rank that calls something else of another
/// layer sends and receives, too, when it finds that the others do not.
pub(crate) fn introduce(comm: &dyn Communicator, own: &Header) -> Vec<Header> {
    let mut prefixes = vec![0u64; PREFIX * comm.size() as usize];
    comm.all_gather_into(&[own.fingerprint(), 0][..], &mut prefixes[..]);
    all_headers(comm, own)
}

/// Everybody's header, which all ranks send at once.
fn all_headers(comm: &dyn Communicator, own: &Header) -> Vec<Header> {
    let mut words = vec![0u64; comm.size() as usize * WORDS];
    comm.all_gather_into(&own.0[..], &mut words[..]);
    words.chunks_exact(WORDS).map(|w| Header(core::array::from_fn(|i| w[i]))).collect()
}

/// Whether all blocks come from the same call, without a problem; then the sum of their counts. Else all
/// ranks, which all have the same blocks before them, exchange their headers, and say what is wrong.
fn agree(comm: &dyn Communicator, header: &Header, blocks: &[u64], block: usize) -> Result<u64, Error> {
    let mut total = 0u64;
    let mut same = true;
    let own = header.fingerprint();
    for message in blocks.chunks_exact(block) {
        same &= message[0] == own && message[0] & 1 == 0;
        total = total.saturating_add(message[1]);
    }
    if same {
        return Ok(total);
    }
    let headers = all_headers(comm, header);
    header::check(&headers)?;
    // The headers agree, so a fingerprint was changed on its way.
    let show = |word: u64| header::show(Setting::Message, &[word]);
    let damaged = blocks.chunks_exact(block).position(|m| m[0] != own).unwrap_or(0);
    Err(Error::Differs {
        what: Setting::Message,
        rank: damaged as Rank,
        got: show(blocks[damaged * block]),
        expected: show(own),
    })
}

fn pack<S: Share>(message: &mut [u64], prefix: [u64; PREFIX], shares: &[S]) {
    message[..PREFIX].copy_from_slice(&prefix);
    pack_pairs(&mut message[PREFIX..], shares);
}

/// Pairs, and zeros to the end.
fn pack_pairs<S: Share>(words: &mut [u64], shares: &[S]) {
    let (pairs, rest) = words.split_at_mut(shares.len() * PAIR);
    for (to, share) in pairs.chunks_exact_mut(PAIR).zip(shares) {
        to.copy_from_slice(&share.pair().map(f64::to_bits));
    }
    rest.fill(0);
}

fn unpack(words: &[u64]) -> [f64; PAIR] {
    [f64::from_bits(words[0]), f64::from_bits(words[1])]
}

/// Merges blocks in the order of the ranks.
fn merge<S: Share>(blocks: &[u64], block: usize, merged: &mut [S]) {
    merged.fill(S::default());
    for message in blocks.chunks_exact(block) {
        for (to, from) in merged.iter_mut().zip(message[PREFIX..].chunks_exact(PAIR)) {
            to.take_in(message[1], unpack(from));
        }
    }
}

/// So many zeros, or an error where there is no memory.
pub(crate) fn filled<V: Clone + Default>(len: usize) -> Result<Vec<V>, Problem> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| Problem::Memory { bytes: len.saturating_mul(size_of::<V>()) })?;
    vec.resize(len, V::default());
    Ok(vec)
}
