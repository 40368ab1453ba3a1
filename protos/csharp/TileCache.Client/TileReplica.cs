using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Threading;
using System.Threading.Channels;
using System.Threading.Tasks;
using Google.Protobuf;
using Grpc.Core;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>
    /// The tiles around the caller in its own memory, which the daemon keeps up to date.
    /// <para>
    /// A read takes microseconds, never waits and makes no call. It says whether all its cells are held, and how old they
    /// may be. While the daemon is away, reads go on, and the age grows; what has changed meanwhile is fetched when it is
    /// back. A refusal that cannot heal ends the replica: from then on <see cref="Follow"/>,
    /// <see cref="WaitUntilSyncedAsync"/> and every read throw <see cref="TileReplicaException"/>.
    /// </para>
    /// <para>Usable from several threads. Reads do not count as uses of the tiles: call <c>TouchTiles</c>.</para>
    /// </summary>
    public sealed class TileReplica : IAsyncDisposable, IDisposable
    {
        /// <summary>The tiles that a replica holds at most, if it is not told otherwise.</summary>
        public const int DefaultMaxTiles = 200_000;

        // The daemon sends a heartbeat each second.
        private const double SilenceSeconds = 3;

        // As long as the daemon's limit is not known.
        private const int MaxBlocks = 65_536;

        private static readonly TimeSpan FirstRetry = TimeSpan.FromSeconds(0.1);
        private static readonly TimeSpan MaxRetry = TimeSpan.FromSeconds(1);
        private static readonly TimeSpan InfoTimeout = TimeSpan.FromSeconds(5);

        private readonly TileMetadataStore.TileMetadataStoreClient store;
        private readonly int maxTiles;
        private readonly ReplicaState<TileMetadata> state = new ReplicaState<TileMetadata>(new TileTraits());
        private readonly CancellationTokenSource closing = new CancellationTokenSource();
        private readonly Task running;

        // Guards changes of the state, and the fields below; reads do without.
        private readonly object changing = new object();
        private List<WatchedArea> areas = new List<WatchedArea>();
        private HashSet<BlockKey> followed = new HashSet<BlockKey>();
        private Limits? limits;
        private ChannelWriter<WatchTilesRequest>? requests;
        private TaskCompletionSource<bool> changedSignal = NewSignal();
        private TimeSpan delay = FirstRetry;

        private volatile FollowedCircle? circle;
        private volatile Exception? failure;
        private double heardAt = double.NegativeInfinity;
        private int disposed;

        /// <summary>Opens a replica, which follows nothing yet.</summary>
        /// <param name="store">A client on a channel that lives longer than the replica.</param>
        /// <param name="maxTiles">More tiles in the followed area end the replica.</param>
        public TileReplica(TileMetadataStore.TileMetadataStoreClient store, int maxTiles = DefaultMaxTiles)
        {
            ArgumentNullException.ThrowIfNull(store);
            this.store = store;
            this.maxTiles = maxTiles;
            CancellationToken token = closing.Token;
            running = Task.Run(() => RunAsync(token), CancellationToken.None);
        }

        /// <summary>
        /// Raised in the replica's task when tiles have changed. A handler must return soon, and must not dispose the
        /// replica; what it throws is written to <see cref="Trace"/>.
        /// </summary>
        public event EventHandler<TilesChangedEventArgs>? Changed;

        /// <summary>Whether all of the followed area has arrived, and the stream is open.</summary>
        public bool Synced => state.Synced;

        /// <summary>
        /// Every change that was committed longer ago than this is in the tiles that are held. Infinite if nothing is
        /// known.
        /// </summary>
        public double AgeSeconds => Now() - state.ConfirmedAt;

        /// <summary>
        /// Whether changes may go unnoticed at present: the daemon or PostgreSQL does not answer, or the daemon is not
        /// subscribed to changes.
        /// </summary>
        public bool Degraded => state.Degraded || Now() - Volatile.Read(ref heardAt) > SilenceSeconds;

        /// <summary>The number of tiles that are held.</summary>
        public int TileCount => state.Tiles.Count;

        /// <summary>
        /// Follows the tiles within a distance of a position; to be called as the caller moves. Returns at once. More than
        /// the circle is followed, mostly ahead if the velocity is given, so that most calls change nothing.
        /// </summary>
        /// <param name="latitude">Degrees.</param>
        /// <param name="longitude">Degrees.</param>
        /// <param name="radiusMeters">On the ground.</param>
        /// <param name="zooms">0 to 22 each.</param>
        /// <param name="northMps">The caller's velocity in metres per second, northward.</param>
        /// <param name="eastMps">The same, eastward.</param>
        /// <exception cref="ArgumentException">
        /// A value is out of range, or the area is larger than the daemon allows.
        /// </exception>
        public void Follow(
            double latitude,
            double longitude,
            double radiusMeters,
            IReadOnlyCollection<int> zooms,
            double northMps = 0,
            double eastMps = 0)
        {
            ArgumentNullException.ThrowIfNull(zooms);
            ThrowIfEnded();
            if (circle?.Suffices(latitude, longitude, radiusMeters, zooms) == true)
            {
                return;
            }

            FollowedCircle next = FollowedCircle.Around(latitude, longitude, radiusMeters, zooms, northMps, eastMps);
            List<WatchedArea> nextAreas = next.Zooms.Select(zoom => AreaOf(next, zoom)).ToList();
            lock (changing)
            {
                HashSet<BlockKey> blocks = BlocksOf(next, limits?.MaxWatchedBlocks ?? MaxBlocks);
                CheckAreas(nextAreas.Count, limits);
                areas = nextAreas;
                followed = blocks;
                circle = next;
                Send(state.Follow(blocks));
            }
        }

        /// <summary>Waits until all of the followed area has arrived.</summary>
        /// <param name="timeout">How long to wait.</param>
        /// <param name="cancellationToken">Ends the waiting.</param>
        /// <returns>A task that ends when the replica is synced.</returns>
        /// <exception cref="TimeoutException">The time is over.</exception>
        public async Task WaitUntilSyncedAsync(TimeSpan timeout, CancellationToken cancellationToken = default)
        {
            using CancellationTokenSource timer = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
            timer.CancelAfter(timeout);
            while (true)
            {
                Task changed;
                lock (changing)
                {
                    ThrowIfEnded();
                    if (state.Synced)
                    {
                        return;
                    }

                    changed = changedSignal.Task;
                }

                try
                {
                    await changed.WaitAsync(timer.Token).ConfigureAwait(false);
                }
                catch (OperationCanceledException) when (!cancellationToken.IsCancellationRequested)
                {
                    throw new TimeoutException("The replica is not synced after " + timeout);
                }
            }
        }

        /// <summary>The tiles of the cells that a circle on the ground overlaps.</summary>
        /// <param name="latitude">Degrees.</param>
        /// <param name="longitude">Degrees.</param>
        /// <param name="radiusMeters">On the ground.</param>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="labels">Only these labels; none: those that a query returns by default.</param>
        /// <param name="sources">Only these sources; none: all.</param>
        /// <param name="bestPerCell">Of each cell only the best tile.</param>
        /// <returns>The tiles, and how true they are.</returns>
        public TileWindow Around(
            double latitude,
            double longitude,
            double radiusMeters,
            int zoom,
            IReadOnlyCollection<FreshnessLabel>? labels = null,
            IReadOnlyCollection<TileSource>? sources = null,
            bool bestPerCell = false)
        {
            FollowedCircle.CheckCircle(latitude, longitude, radiusMeters);
            FollowedCircle.CheckRange(nameof(zoom), zoom, 0, Mercator.MaxZoom);
            IEnumerable<CellRectangle> cells = Mercator.CellsInCircle(zoom, latitude, longitude, radiusMeters);
            return Read(zoom, cells, labels, sources, bestPerCell);
        }

        /// <summary>The tiles of the cells that a box overlaps. West is more than east across the antimeridian.</summary>
        /// <param name="south">Degrees.</param>
        /// <param name="west">Degrees.</param>
        /// <param name="north">Degrees.</param>
        /// <param name="east">Degrees.</param>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="labels">Only these labels; none: those that a query returns by default.</param>
        /// <param name="sources">Only these sources; none: all.</param>
        /// <param name="bestPerCell">Of each cell only the best tile.</param>
        /// <returns>The tiles, and how true they are.</returns>
        public TileWindow Box(
            double south,
            double west,
            double north,
            double east,
            int zoom,
            IReadOnlyCollection<FreshnessLabel>? labels = null,
            IReadOnlyCollection<TileSource>? sources = null,
            bool bestPerCell = false)
        {
            FollowedCircle.CheckRange(nameof(north), north, -90, 90);
            FollowedCircle.CheckRange(nameof(south), south, -90, north);
            FollowedCircle.CheckRange(nameof(west), west, -180, 180);
            FollowedCircle.CheckRange(nameof(east), east, -180, 180);
            FollowedCircle.CheckRange(nameof(zoom), zoom, 0, Mercator.MaxZoom);
            return Read(zoom, Mercator.CellsInBox(zoom, south, west, north, east), labels, sources, bestPerCell);
        }

        /// <summary>The tiles of a rectangle of cells, ends included.</summary>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="xFrom">The first column.</param>
        /// <param name="xTo">The last column.</param>
        /// <param name="yFrom">The first row.</param>
        /// <param name="yTo">The last row.</param>
        /// <param name="labels">Only these labels; none: those that a query returns by default.</param>
        /// <param name="sources">Only these sources; none: all.</param>
        /// <param name="bestPerCell">Of each cell only the best tile.</param>
        /// <returns>The tiles, and how true they are.</returns>
        public TileWindow Cells(
            int zoom,
            int xFrom,
            int xTo,
            int yFrom,
            int yTo,
            IReadOnlyCollection<FreshnessLabel>? labels = null,
            IReadOnlyCollection<TileSource>? sources = null,
            bool bestPerCell = false)
        {
            CheckCell(zoom, xTo, yTo);
            FollowedCircle.CheckRange(nameof(xFrom), xFrom, 0, xTo);
            FollowedCircle.CheckRange(nameof(yFrom), yFrom, 0, yTo);
            return Read(zoom, new[] { new CellRectangle(xFrom, xTo, yFrom, yTo) }, labels, sources, bestPerCell);
        }

        /// <summary>The best tile of a cell that a query returns by default.</summary>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="x">The column.</param>
        /// <param name="y">The row.</param>
        /// <returns>The tile, which must not be changed; null if there is none.</returns>
        /// <exception cref="TileNotHeldException">The cell is not held.</exception>
        public TileMetadata? Best(int zoom, int x, int y)
        {
            CheckCell(zoom, x, y);
            TileMetadata[] tiles = BlockOf(zoom, x, y).UsableTiles[ReplicaBlock<TileMetadata>.IndexOf(x, y)];
            return tiles.Length == 0 ? null : tiles[0];
        }

        /// <summary>The tile with a key, whatever its label.</summary>
        /// <param name="key">The key.</param>
        /// <returns>The tile, which must not be changed; null if there is none.</returns>
        /// <exception cref="ArgumentException">The contract has no such key.</exception>
        /// <exception cref="TileNotHeldException">Its cell is not held.</exception>
        public TileMetadata? Find(TileKey key)
        {
            string tileUuid = TileIdentities.DeriveTileUuid(key).ToString();
            ReplicaBlock<TileMetadata> block = BlockOf(key.Zoom, key.X, key.Y);
            TileMetadata[] tiles = block.AllTiles[ReplicaBlock<TileMetadata>.IndexOf(key.X, key.Y)];
            return Array.Find(tiles, tile => tile.TileUuid == tileUuid);
        }

        /// <summary>
        /// The tile with an id, whatever its label. An id does not tell its cell, so that a tile that does not exist cannot
        /// be told from one that is not followed; <see cref="Find"/> can.
        /// </summary>
        /// <param name="tileUuid">In canonical lower case.</param>
        /// <returns>The tile, which must not be changed.</returns>
        /// <exception cref="TileNotHeldException">It is not held.</exception>
        public TileMetadata Get(string tileUuid)
        {
            ThrowIfEnded();
            return state.Tiles.TryGetValue(tileUuid, out TileMetadata? tile)
                ? tile
                : throw new TileNotHeldException("The replica does not hold a tile " + tileUuid);
        }

        /// <summary>Ends the stream.</summary>
        /// <returns>A task that ends when the stream has ended.</returns>
        public ValueTask DisposeAsync()
        {
            return new ValueTask(CloseAsync());
        }

        /// <summary>Ends the stream, and waits until it has ended.</summary>
        public void Dispose()
        {
            CloseAsync().GetAwaiter().GetResult();
        }

        private static double Now()
        {
            return Stopwatch.GetTimestamp() / (double)Stopwatch.Frequency;
        }

        private static TaskCompletionSource<bool> NewSignal()
        {
            return new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
        }

        private static WatchedArea AreaOf(FollowedCircle circle, int zoom)
        {
            var area = new Circle
            {
                Latitude = circle.Latitude,
                Longitude = circle.Longitude,
                RadiusMeters = circle.RadiusMeters,
            };
            return new WatchedArea { Zoom = zoom, Region = new Region { Circle = area } };
        }

        private static HashSet<BlockKey> BlocksOf(FollowedCircle circle, int most)
        {
            var blocks = new HashSet<BlockKey>();
            foreach (int zoom in circle.Zooms)
            {
                IEnumerable<CellRectangle> cells = Mercator.CellsInCircle(
                    zoom, circle.Latitude, circle.Longitude, circle.RadiusMeters);
                if (!Mercator.AddBlocks(zoom, cells, blocks, most))
                {
                    throw new ArgumentException("The area has more than " + most + " blocks of 32 x 32 cells.", nameof(circle));
                }
            }

            return blocks;
        }

        private static void CheckAreas(int count, Limits? limits)
        {
            if (limits != null && count > limits.MaxWatchedAreas)
            {
                throw new ArgumentException(
                    "There are " + count + " zooms; the daemon allows " + limits.MaxWatchedAreas, nameof(count));
            }
        }

        private static void CheckCell(int zoom, int x, int y)
        {
            FollowedCircle.CheckRange(nameof(zoom), zoom, 0, Mercator.MaxZoom);
            FollowedCircle.CheckRange(nameof(x), x, 0, (1 << zoom) - 1);
            FollowedCircle.CheckRange(nameof(y), y, 0, (1 << zoom) - 1);
        }

        private static ReplicaUpdate<TileMetadata> UpdateOf(BlockUpdate block)
        {
            return new ReplicaUpdate<TileMetadata>(
                new BlockKey(block.Zoom, block.BlockX, block.BlockY),
                block.Version.ToBase64(),
                block.BaseVersion.ToBase64(),
                block.Tiles,
                block.RemovedTileUuids,
                block.IsPartial);
        }

        private static bool CanHeal(StatusCode code)
        {
            switch (code)
            {
                case StatusCode.Unimplemented:
                case StatusCode.InvalidArgument:
                case StatusCode.PermissionDenied:
                case StatusCode.Unauthenticated:
                    return false;
                default:
                    return true;
            }
        }

        private static async Task SendAllAsync(
            ChannelReader<WatchTilesRequest> outgoing, IClientStreamWriter<WatchTilesRequest> stream)
        {
            try
            {
                while (await outgoing.WaitToReadAsync().ConfigureAwait(false))
                {
                    while (outgoing.TryRead(out WatchTilesRequest? request))
                    {
                        await stream.WriteAsync(request).ConfigureAwait(false);
                    }
                }
            }
            catch (Exception error) when (
                error is RpcException || error is InvalidOperationException || error is OperationCanceledException)
            {
                // The stream has ended; who reads from it learns why.
            }
        }

        private async Task CloseAsync()
        {
            if (Interlocked.Exchange(ref disposed, 1) == 0)
            {
                closing.Cancel();
                await running.ConfigureAwait(false);
                closing.Dispose();
            }
        }

        private TileWindow Read(
            int zoom,
            IEnumerable<CellRectangle> cells,
            IReadOnlyCollection<FreshnessLabel>? labels,
            IReadOnlyCollection<TileSource>? sources,
            bool bestPerCell)
        {
            ThrowIfEnded();
            bool anyLabel = labels is null || labels.Count == 0;
            bool anySource = sources is null || sources.Count == 0;
            // Before the tiles are read: they may only be newer than this.
            double confirmedAt = state.ConfirmedAt;
            var byCell = new List<TileMetadata[]>();
            bool complete = state.Read(zoom, cells, anyLabel, byCell);
            var found = new List<TileMetadata>(byCell.Count);
            foreach (TileMetadata[] tiles in byCell)
            {
                foreach (TileMetadata tile in tiles)
                {
                    if ((anyLabel || labels!.Contains(tile.FreshnessLabel))
                        && (anySource || sources!.Contains(tile.Key.Source)))
                    {
                        found.Add(tile);
                        if (bestPerCell)
                        {
                            break;
                        }
                    }
                }
            }

            return new TileWindow(found, complete, Now() - confirmedAt, Degraded);
        }

        private ReplicaBlock<TileMetadata> BlockOf(int zoom, int x, int y)
        {
            ThrowIfEnded();
            return state.Blocks.TryGetValue(BlockKey.Of(zoom, x, y), out ReplicaBlock<TileMetadata>? block)
                ? block
                : throw new TileNotHeldException("The replica does not hold the cell " + zoom + "/" + x + "/" + y);
        }

        private async Task RunAsync(CancellationToken cancellationToken)
        {
            while (!cancellationToken.IsCancellationRequested)
            {
                TimeSpan? retryAfter = null;
                try
                {
                    await ReceiveAsync(cancellationToken).ConfigureAwait(false);
                }
                catch (RpcException error) when (CanHeal(error.StatusCode))
                {
                    retryAfter = ErrorDetails.From(error).RetryAfter;
                }
                catch (OperationCanceledException)
                {
                    // The replica is disposed, or the channel.
                }
                catch (Exception error)
                {
                    failure = error;
                    return;
                }
                finally
                {
                    lock (changing)
                    {
                        state.Disconnect();
                        Signal();
                    }
                }

                await PauseAsync(retryAfter ?? TimeSpan.Zero, cancellationToken).ConfigureAwait(false);
            }
        }

        private async Task PauseAsync(TimeSpan atLeast, CancellationToken cancellationToken)
        {
            try
            {
                await Task.Delay(delay > atLeast ? delay : atLeast, cancellationToken).ConfigureAwait(false);
            }
            catch (OperationCanceledException)
            {
                // The replica is disposed.
            }

            delay = delay + delay < MaxRetry ? delay + delay : MaxRetry;
        }

        /// <summary>Receives from one stream until it ends.</summary>
        private async Task ReceiveAsync(CancellationToken cancellationToken)
        {
            Limits published = await GetLimitsAsync(cancellationToken).ConfigureAwait(false);
            Channel<WatchTilesRequest> outgoing = Channel.CreateUnbounded<WatchTilesRequest>();
            lock (changing)
            {
                CheckAreas(areas.Count, published);
                if (followed.Count > published.MaxWatchedBlocks)
                {
                    throw new InvalidOperationException(
                        "The area has " + followed.Count + " blocks; the daemon allows " + published.MaxWatchedBlocks);
                }

                limits = published;
                requests = outgoing.Writer;
                Send(state.Reconnect(Now()));
            }

            AsyncDuplexStreamingCall<WatchTilesRequest, WatchTilesResponse> call =
                store.WatchTiles(cancellationToken: cancellationToken);
            Task sending = SendAllAsync(outgoing.Reader, call.RequestStream);
            try
            {
                while (await call.ResponseStream.MoveNext(cancellationToken).ConfigureAwait(false))
                {
                    Apply(call.ResponseStream.Current);
                }
            }
            finally
            {
                lock (changing)
                {
                    requests = null;
                }

                call.Dispose();
                outgoing.Writer.Complete();
                await sending.ConfigureAwait(false);
            }
        }

        private async Task<Limits> GetLimitsAsync(CancellationToken cancellationToken)
        {
            using CancellationTokenSource timer = CancellationTokenSource.CreateLinkedTokenSource(cancellationToken);
            // Not a deadline, which is a time of day.
            timer.CancelAfter(InfoTimeout);
            GetServerInfoResponse info = await store.GetServerInfoAsync(
                new GetServerInfoRequest(), cancellationToken: timer.Token).ConfigureAwait(false);
            return info.Limits?.MaxWatchStreams > 0
                ? info.Limits
                : throw new NotSupportedException(
                    "A replica takes contract 1.5.0; the daemon has " + info.ContractVersion);
        }

        private void Apply(WatchTilesResponse message)
        {
            double receivedAt = Now();
            var changed = new List<BlockKey>();
            var wanted = new List<ReplicaRequest>();
            foreach (BlockUpdate block in message.Blocks)
            {
                // Not for the whole message, so that a call of Follow need not wait long.
                lock (changing)
                {
                    state.Apply(message.Number, UpdateOf(block), changed, wanted);
                    wanted.ForEach(Send);
                    wanted.Clear();
                }
            }

            lock (changing)
            {
                if (message.Synced)
                {
                    state.NoteSynced(message.Number);
                }

                if (message.Heartbeat != null)
                {
                    NoteHeartbeat(message.Heartbeat, receivedAt);
                }

                Signal();
            }

            if (state.Tiles.Count > maxTiles)
            {
                throw new InvalidOperationException(
                    "The followed area has more than " + maxTiles + " tiles, the replica's limit.");
            }

            if (changed.Count > 0)
            {
                OnChanged(changed.Distinct().ToList());
            }
        }

        private void NoteHeartbeat(Heartbeat beat, double receivedAt)
        {
            state.NoteHeartbeat(beat.HasAgeMs ? beat.AgeMs : (long?)null, beat.Degraded, beat.ElapsedMs, receivedAt);
            Volatile.Write(ref heardAt, receivedAt);
            delay = FirstRetry;
        }

        private void OnChanged(List<BlockKey> blocks)
        {
            try
            {
                Changed?.Invoke(this, new TilesChangedEventArgs(blocks));
            }
            catch (Exception error)
            {
                Trace.TraceError("A handler of a replica's changes failed: " + error);
            }
        }

        private void Send(ReplicaRequest request)
        {
            if (requests is null)
            {
                return;
            }

            var message = new WatchTilesRequest { Number = request.Number };
            message.Areas.AddRange(areas);
            message.Held.AddRange(request.Held.Select(block => new HeldBlock
            {
                Zoom = block.Key.Zoom,
                BlockX = block.Key.X,
                BlockY = block.Key.Y,
                Version = ByteString.FromBase64(block.Value),
            }));
            requests.TryWrite(message);
        }

        private void Signal()
        {
            changedSignal.TrySetResult(true);
            changedSignal = NewSignal();
        }

        private void ThrowIfEnded()
        {
            ObjectDisposedException.ThrowIf(Volatile.Read(ref disposed) != 0, this);
            if (failure != null)
            {
                throw new TileReplicaException(failure);
            }
        }
    }
}
