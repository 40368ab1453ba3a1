using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;
using Grpc.Core;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>A replica beside a running daemon.</summary>
    [Collection(DaemonGroup.Name)]
    public sealed class ReplicaOfDaemonTests : IDisposable
    {
        private const int X = 4000;
        private const int Y = 100_000;

        private static readonly TimeSpan Timeout = TimeSpan.FromSeconds(30);
        private static readonly int[] Zooms = { Tiles.Zoom };

        private readonly TileMetadataStore.TileMetadataStoreClient store;
        private readonly TileReplica replica;

        public ReplicaOfDaemonTests(Daemon daemon)
        {
            store = daemon.Store;
            replica = new TileReplica(store);
        }

        public void Dispose()
        {
            replica.Dispose();
        }

        [Fact]
        public async Task It_holds_what_a_query_returns()
        {
            for (int column = 0; column < 40; column++)
            {
                await InsertAsync(Tiles.Downloaded(X + column, Y));
            }

            await FollowAsync(X, Y);
            TileWindow window = replica.Cells(Tiles.Zoom, X, X + 39, Y, Y);

            Assert.True(window.Complete);
            Assert.False(window.Degraded);
            Assert.InRange(window.AgeSeconds, 0, Timeout.TotalSeconds);
            Assert.Equal(await QueryAsync(X, X + 39, Y), window.Tiles.Select(WithoutAccess).ToHashSet());
            Assert.Equal(40, window.Tiles.Count);
        }

        [Fact]
        public async Task A_change_is_seen()
        {
            const int y = Y + 1000;
            await FollowAsync(X, y);
            Assert.Null(replica.Best(Tiles.Zoom, X, y));

            TileMetadata stored = await InsertAsync(Tiles.Downloaded(X, y));
            await EventuallyAsync(() => replica.Best(Tiles.Zoom, X, y) != null);

            Assert.Equal(WithoutAccess(stored), WithoutAccess(replica.Get(stored.TileUuid)));
            Assert.Equal(replica.Get(stored.TileUuid), replica.Find(stored.Key));
        }

        private static TileMetadata WithoutAccess(TileMetadata tile)
        {
            TileMetadata copy = tile.Clone();
            copy.AccessedAt = null;
            return copy;
        }

        private static async Task EventuallyAsync(Func<bool> condition)
        {
            DateTime end = DateTime.UtcNow + Timeout;
            while (!condition())
            {
                Assert.True(DateTime.UtcNow < end, "the condition has not come true");
                await Task.Delay(5);
            }
        }

        private async Task FollowAsync(int x, int y)
        {
            double edge = 360.0 / (1 << Tiles.Zoom);
            double longitude = ((x + 20) * edge) - 180;
            double latitude = Math.Atan(Math.Sinh(Math.PI * (1 - (((2.0 * y) + 1) / (1 << Tiles.Zoom))))) * 180 / Math.PI;
            replica.Follow(latitude, longitude, 3_000, Zooms);
            await replica.WaitUntilSyncedAsync(Timeout);
        }

        private async Task<TileMetadata> InsertAsync(TileMetadata tile)
        {
            InsertTileResponse answer = await store.InsertTileAsync(
                new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon);
            return answer.Tile;
        }

        private async Task<HashSet<TileMetadata>> QueryAsync(int xFrom, int xTo, int y)
        {
            var cells = new CellRange { XFrom = xFrom, XTo = xTo, YFrom = y, YTo = y };
            var found = new HashSet<TileMetadata>();
            using AsyncServerStreamingCall<QueryTilesResponse> call = store.QueryTiles(
                new QueryTilesRequest { Zoom = Tiles.Zoom, Region = new Region { CellRange = cells } },
                deadline: Daemon.Soon);
            await foreach (QueryTilesResponse chunk in call.ResponseStream.ReadAllAsync())
            {
                found.UnionWith(chunk.Tiles.Select(WithoutAccess));
            }

            return found;
        }
    }
}
