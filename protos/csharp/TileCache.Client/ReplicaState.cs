using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Linq;
using System.Threading;

namespace TileCache.Client
{
    /// <summary>
    /// What a replica holds, and what the messages of <c>WatchTiles</c> do to it. It knows neither gRPC nor protobuf and
    /// keeps to C# 7, so that it can be compiled and tested wherever there is a C# compiler. Blocks are replaced as a
    /// whole: what is held can be read from any thread at any time. Calls that change the state must not run at the same
    /// time. Times are seconds by a monotonic clock.
    /// </summary>
    internal sealed class ReplicaState<TTile>
    {
        private readonly ITileTraits<TTile> traits;
        private readonly Dictionary<BlockKey, long> followedSince =
            new Dictionary<BlockKey, long>();

        private readonly Dictionary<BlockKey, List<ReplicaUpdate<TTile>>> parts =
            new Dictionary<BlockKey, List<ReplicaUpdate<TTile>>>();

        private long number;
        private double earliestOrigin = double.PositiveInfinity;
        private double confirmedAt = double.NegativeInfinity;
        private volatile bool synced;
        private volatile bool degraded = true;

        public ReplicaState(ITileTraits<TTile> traits)
        {
            this.traits = traits;
        }

        /// <summary>The held blocks, to be read from any thread.</summary>
        public ConcurrentDictionary<BlockKey, ReplicaBlock<TTile>> Blocks { get; } =
            new ConcurrentDictionary<BlockKey, ReplicaBlock<TTile>>();

        /// <summary>Their tiles by id, to be read from any thread.</summary>
        public ConcurrentDictionary<string, TTile> Tiles { get; } =
            new ConcurrentDictionary<string, TTile>(StringComparer.Ordinal);

        /// <summary>Whether every followed block has arrived.</summary>
        public bool Synced => synced;

        public bool Degraded => degraded;

        /// <summary>The held blocks have every change that was committed before this time.</summary>
        public double ConfirmedAt => Volatile.Read(ref confirmedAt);

        /// <summary>Follows these blocks, and forgets others.</summary>
        public ReplicaRequest Follow(HashSet<BlockKey> keys)
        {
            number++;
            foreach (var key in followedSince.Keys.Where(key => !keys.Contains(key)).ToList())
            {
                followedSince.Remove(key);
                parts.Remove(key);
                Forget(key);
            }

            foreach (var key in keys)
            {
                followedSince.TryAdd(key, number);
            }

            synced = false;
            return new ReplicaRequest(number, new Dictionary<BlockKey, string>());
        }

        /// <summary>A new stream begins: what is held is named.</summary>
        /// <param name="openedAt">A time before the stream is opened.</param>
        public ReplicaRequest Reconnect(double openedAt)
        {
            number++;
            parts.Clear();
            // The daemon cannot have begun the stream before, however late its heartbeats arrive.
            earliestOrigin = openedAt;
            synced = false;
            return new ReplicaRequest(number, Blocks.ToDictionary(block => block.Key, block => block.Value.Version));
        }

        /// <summary>The stream has ended: what is held may be out of date.</summary>
        public void Disconnect()
        {
            degraded = true;
            synced = false;
        }

        /// <summary>One of the blocks of a message with this number.</summary>
        /// <param name="messageNumber">The number of the message.</param>
        /// <param name="update">The block.</param>
        /// <param name="changed">Gets the block if it has changed.</param>
        /// <param name="requests">Gets what is to be sent if the change does not fit to what is held.</param>
        public void Apply(
            long messageNumber,
            ReplicaUpdate<TTile> update,
            ICollection<BlockKey> changed,
            ICollection<ReplicaRequest> requests)
        {
            var key = update.Block;
            if (!followedSince.TryGetValue(key, out long since) || messageNumber < since)
            {
                // Sent before the daemon knew that the block is followed (again).
                return;
            }

            List<ReplicaUpdate<TTile>> all = TakeParts(key);
            all.Add(update);
            if (update.IsPartial)
            {
                parts.Add(key, all);
                return;
            }

            changed.Add(key);
            List<TTile> put = all.SelectMany(part => part.Tiles).ToList();
            if (update.BaseVersion.Length == 0)
            {
                Replace(key, NewBlock(update.Version, put), put);
            }
            else if (Blocks.TryGetValue(key, out var held) && held.Version == update.BaseVersion)
            {
                var removed = new HashSet<string>(all.SelectMany(part => part.RemovedTileUuids), StringComparer.Ordinal);
                Change(key, held, update.Version, put, removed);
            }
            else
            {
                requests.Add(AskAnew(key));
            }
        }

        /// <summary>The mark of a message with this number that all is sent.</summary>
        public void NoteSynced(long messageNumber)
        {
            if (messageNumber == number)
            {
                synced = true;
            }
        }

        /// <summary>A heartbeat, and when it was received.</summary>
        public void NoteHeartbeat(long? ageMs, bool isDegraded, long elapsedMs, double receivedAt)
        {
            degraded = isDegraded;
            // A heartbeat that was delayed on its way tells of an earlier time than it seems to.
            earliestOrigin = Math.Min(earliestOrigin, receivedAt - (elapsedMs / 1000.0));
            if (ageMs.HasValue)
            {
                Volatile.Write(ref confirmedAt, earliestOrigin + ((elapsedMs - ageMs.Value) / 1000.0));
            }
        }

        /// <summary>Adds the tiles of each cell that has some. From any thread.</summary>
        /// <returns>Whether all of the cells are held.</returns>
        public bool Read(int zoom, IEnumerable<CellRectangle> cells, bool usable, ICollection<TTile[]> found)
        {
            const int bits = BlockKey.Bits;
            const int mask = (1 << bits) - 1;
            bool complete = true;
            foreach (CellRectangle part in cells)
            {
                for (int blockY = part.YFrom >> bits; blockY <= part.YTo >> bits; blockY++)
                {
                    int top = Math.Max(part.YFrom, blockY << bits), bottom = Math.Min(part.YTo, (blockY << bits) | mask);
                    for (int blockX = part.XFrom >> bits; blockX <= part.XTo >> bits; blockX++)
                    {
                        if (!Blocks.TryGetValue(new BlockKey(zoom, blockX, blockY), out var block))
                        {
                            complete = false;
                            continue;
                        }

                        int left = Math.Max(part.XFrom, blockX << bits), right = Math.Min(part.XTo, (blockX << bits) | mask);
                        AddTiles(usable ? block.UsableTiles : block.AllTiles, left, right, top, bottom, found);
                    }
                }
            }

            return complete;
        }

        private static void AddTiles(
            TTile[][] byCell, int left, int right, int top, int bottom, ICollection<TTile[]> found)
        {
            for (int y = top; y <= bottom; y++)
            {
                int first = ReplicaBlock<TTile>.IndexOf(left, y);
                for (int index = first; index <= first + right - left; index++)
                {
                    if (byCell[index].Length > 0)
                    {
                        found.Add(byCell[index]);
                    }
                }
            }
        }

        private List<ReplicaUpdate<TTile>> TakeParts(BlockKey key)
        {
            return parts.Remove(key, out var taken) ? taken : new List<ReplicaUpdate<TTile>>();
        }

        private ReplicaRequest AskAnew(BlockKey key)
        {
            Forget(key);
            number++;
            followedSince[key] = number;
            synced = false;
            return new ReplicaRequest(
                number, new Dictionary<BlockKey, string> { { key, string.Empty } });
        }

        private ReplicaBlock<TTile> NewBlock(string version, List<TTile> put)
        {
            var allTiles = new TTile[ReplicaBlock<TTile>.CellCount][];
            for (int index = 0; index < allTiles.Length; index++)
            {
                allTiles[index] = Array.Empty<TTile>();
            }

            foreach (var cell in put.GroupBy(IndexOf))
            {
                allTiles[cell.Key] = InOrder(cell);
            }

            return new ReplicaBlock<TTile>(version, allTiles, allTiles.Select(Usable).ToArray());
        }

        private void Replace(BlockKey key, ReplicaBlock<TTile> block, List<TTile> put)
        {
            IEnumerable<TTile> before = Blocks.TryGetValue(key, out var held) ? held.Tiles : Array.Empty<TTile>();
            Blocks[key] = block;
            Index(put);
            Unindex(before);
        }

        private void Change(
            BlockKey key,
            ReplicaBlock<TTile> held,
            string version,
            List<TTile> put,
            HashSet<string> removed)
        {
            var gone = new HashSet<string>(removed.Concat(put.Select(traits.IdOf)), StringComparer.Ordinal);
            var allTiles = (TTile[][])held.AllTiles.Clone();
            var usableTiles = (TTile[][])held.UsableTiles.Clone();
            var byCell = put.ToLookup(IndexOf);
            for (int index = 0; index < allTiles.Length; index++)
            {
                TTile[] before = allTiles[index];
                if (byCell.Contains(index) || Array.Exists(before, tile => gone.Contains(traits.IdOf(tile))))
                {
                    allTiles[index] = InOrder(
                        before.Where(tile => !gone.Contains(traits.IdOf(tile))).Concat(byCell[index]));
                    usableTiles[index] = Usable(allTiles[index]);
                }
            }

            Blocks[key] = new ReplicaBlock<TTile>(version, allTiles, usableTiles);
            Index(put);
            Unindex(held.Tiles.Where(tile => removed.Contains(traits.IdOf(tile))));
        }

        private void Forget(BlockKey key)
        {
            if (Blocks.TryRemove(key, out var held))
            {
                Unindex(held.Tiles);
            }
        }

        private void Index(List<TTile> put)
        {
            foreach (TTile tile in put)
            {
                Tiles[traits.IdOf(tile)] = tile;
            }
        }

        /// <summary>Removes tiles from the index, but not the tiles that have taken their ids since.</summary>
        private void Unindex(IEnumerable<TTile> old)
        {
            foreach (TTile tile in old)
            {
                string tileUuid = traits.IdOf(tile);
                if (Tiles.TryGetValue(tileUuid, out var found) && ReferenceEquals(found, tile))
                {
                    Tiles.TryRemove(tileUuid, out _);
                }
            }
        }

        private int IndexOf(TTile tile)
        {
            return ReplicaBlock<TTile>.IndexOf(traits.ColumnOf(tile), traits.RowOf(tile));
        }

        private TTile[] InOrder(IEnumerable<TTile> some)
        {
            TTile[] ordered = some.ToArray();
            Array.Sort(ordered, traits.Compare);
            return ordered;
        }

        private TTile[] Usable(TTile[] some)
        {
            return Array.TrueForAll(some, traits.IsUsable) ? some : some.Where(traits.IsUsable).ToArray();
        }
    }
}
