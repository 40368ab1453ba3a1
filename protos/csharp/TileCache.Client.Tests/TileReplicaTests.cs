using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading.Tasks;
using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Grpc.Core;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>A replica beside a store that the test scripts.</summary>
    public sealed class TileReplicaTests : IDisposable
    {
        private const double Latitude = 44.2;
        private const double Longitude = 33.1;
        private const double RadiusMeters = 100;

        private static readonly TimeSpan Timeout = TimeSpan.FromSeconds(30);
        private static readonly int[] Zooms = { Tiles.Zoom };
        private static readonly FreshnessLabel[] OnlyRejected = { FreshnessLabel.Rejected };
        private static readonly TileSource[] OnlyOnboard = { TileSource.OnboardIngest };

        private readonly ScriptedStore store = new ScriptedStore();
        private readonly TileReplica replica;

        public TileReplicaTests()
        {
            replica = new TileReplica(store);
        }

        public void Dispose()
        {
            replica.Dispose();
        }

        [Fact]
        public async Task It_knows_nothing_before_the_area_has_arrived()
        {
            replica.Follow(Latitude, Longitude, RadiusMeters, Zooms);

            TileWindow window = replica.Around(Latitude, Longitude, RadiusMeters, Tiles.Zoom);

            Assert.Empty(window.Tiles);
            Assert.False(window.Complete);
            Assert.True(window.Degraded);
            Assert.True(double.IsPositiveInfinity(window.AgeSeconds));
            Assert.False(replica.Synced);
            await Assert.ThrowsAsync<TimeoutException>(
                () => replica.WaitUntilSyncedAsync(TimeSpan.FromMilliseconds(10)));
        }

        [Fact]
        public async Task It_holds_what_it_was_sent()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            TileMetadata tile = TileIn(key, 3, 4, "b");
            stream.Send(2, false, Whole(key, "v2", TileIn(key, 1, 1, "a"), tile, TileIn(key, 3, 4, "c")));
            await EventuallyAsync(() => replica.TileCount == 3);

            int x = tile.Key.X, y = tile.Key.Y;
            TileWindow window = replica.Cells(Tiles.Zoom, x - 3, x, y - 4, y);

            Assert.Equal("a b c", IdsOf(window));
            Assert.True(window.Complete);
            Assert.False(window.Degraded);
            Assert.InRange(window.AgeSeconds, 0, Timeout.TotalSeconds);
            Assert.Equal("b", replica.Best(Tiles.Zoom, x, y)?.TileUuid);
            Assert.Null(replica.Best(Tiles.Zoom, x - 1, y));
            Assert.Equal("c", replica.Get("c").TileUuid);
            Assert.Throws<TileNotHeldException>(() => replica.Get("d"));
            Assert.Throws<TileNotHeldException>(() => replica.Best(Tiles.Zoom, 0, 0));
            Assert.False(replica.Cells(Tiles.Zoom, 0, 0, 0, 0).Complete);
        }

        [Fact]
        public async Task Filters_are_those_of_a_query()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            TileMetadata rejected = TileIn(key, 0, 0, "rejected", FreshnessLabel.Rejected);
            TileMetadata onboard = TileIn(key, 0, 0, "onboard", FreshnessLabel.Downgraded);
            onboard.Key.Source = TileSource.OnboardIngest;
            stream.Send(2, false, Whole(key, "v2", rejected, onboard, TileIn(key, 0, 0, "fresh")));
            await EventuallyAsync(() => replica.TileCount == 3);

            int x = rejected.Key.X, y = rejected.Key.Y;

            Assert.Equal("fresh onboard", IdsOf(replica.Cells(Tiles.Zoom, x, x, y, y)));
            Assert.Equal("fresh", IdsOf(replica.Cells(Tiles.Zoom, x, x, y, y, bestPerCell: true)));
            Assert.Equal("rejected", IdsOf(replica.Cells(Tiles.Zoom, x, x, y, y, labels: OnlyRejected)));
            Assert.Equal("onboard", IdsOf(replica.Cells(Tiles.Zoom, x, x, y, y, sources: OnlyOnboard)));
        }

        [Fact]
        public async Task A_moving_caller_seldom_asks_for_another_area()
        {
            (ScriptedStore.Stream stream, _) = await SyncAsync();

            replica.Follow(Latitude + 0.0001, Longitude, RadiusMeters, Zooms);
            Assert.False(stream.HasRequest());
            replica.Follow(Latitude + 0.001, Longitude, RadiusMeters, Zooms);
            WatchTilesRequest request = await stream.ReceiveAsync();

            Assert.Equal(3, request.Number);
            Assert.Equal(Latitude + 0.001, Assert.Single(request.Areas).Region.Circle.Latitude);
            Assert.False(replica.Synced);
        }

        [Fact]
        public async Task A_lost_stream_costs_only_what_has_changed()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            stream.End(StatusCode.Unavailable);
            ScriptedStore.Stream next = await store.AcceptAsync();

            WatchTilesRequest request = await next.ReceiveAsync();
            HeldBlock held = request.Held.Single(block => block.BlockX == key.X && block.BlockY == key.Y);

            Assert.Equal("v1", held.Version.ToStringUtf8());
            Assert.False(replica.Synced);
            Assert.True(replica.Degraded);
            Assert.True(replica.Around(Latitude, Longitude, RadiusMeters, Tiles.Zoom).Complete);
            next.Send(request.Number, true);
            await replica.WaitUntilSyncedAsync(Timeout);
        }

        [Fact]
        public async Task A_change_of_another_version_has_the_block_asked_for_anew()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            BlockUpdate change = Whole(key, "v9", TileIn(key, 0, 0, "a"));
            change.BaseVersion = ByteString.CopyFromUtf8("v8");
            stream.Send(2, false, change);

            WatchTilesRequest request = await stream.ReceiveAsync();

            HeldBlock wanted = Assert.Single(request.Held);
            Assert.Equal((key.X, key.Y), (wanted.BlockX, wanted.BlockY));
            Assert.True(wanted.Version.IsEmpty);
            Assert.NotEmpty(request.Areas);
        }

        [Fact]
        public async Task A_handler_is_told_which_blocks_have_changed()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            var told = new TaskCompletionSource<IReadOnlyCollection<BlockKey>>();
            replica.Changed += (_, change) => told.TrySetResult(change.Blocks);
            replica.Changed += (_, change) => throw new InvalidOperationException("a handler's error");

            stream.Send(2, false, Whole(key, "v2"));
            stream.Send(2, false, Whole(key, "v3", TileIn(key, 0, 0, "a")));

            Assert.Equal(key, Assert.Single(await told.Task));
            await EventuallyAsync(() => replica.TileCount == 1);
        }

        [Theory]
        [InlineData(StatusCode.Unimplemented)]
        [InlineData(StatusCode.InvalidArgument)]
        [InlineData(StatusCode.PermissionDenied)]
        public async Task A_refusal_that_cannot_heal_ends_it(StatusCode code)
        {
            (ScriptedStore.Stream stream, _) = await SyncAsync();
            replica.Follow(0, 0, RadiusMeters, Zooms);
            stream.End(code);

            TileReplicaException error = await Assert.ThrowsAsync<TileReplicaException>(
                () => replica.WaitUntilSyncedAsync(Timeout));

            Assert.Equal(code, Assert.IsType<RpcException>(error.InnerException).StatusCode);
            Assert.Throws<TileReplicaException>(() => replica.Follow(Latitude, Longitude, RadiusMeters, Zooms));
            Assert.Throws<TileReplicaException>(() => replica.Best(Tiles.Zoom, 0, 0));
            Assert.Throws<TileReplicaException>(() => replica.Cells(Tiles.Zoom, 0, 0, 0, 0));
        }

        [Fact]
        public async Task An_older_daemon_ends_it()
        {
            using var old = new TileReplica(new ScriptedStore { Limits = new Limits() });

            TileReplicaException error = await Assert.ThrowsAsync<TileReplicaException>(
                () => old.WaitUntilSyncedAsync(Timeout));

            Assert.IsType<NotSupportedException>(error.InnerException);
        }

        [Fact]
        public async Task More_tiles_than_it_may_hold_end_it()
        {
            var other = new ScriptedStore();
            using var small = new TileReplica(other, maxTiles: 1);
            small.Follow(Latitude, Longitude, RadiusMeters, Zooms);
            ScriptedStore.Stream stream = await other.AcceptAsync();
            (long number, BlockKey key) = await FirstAreaAsync(stream);
            stream.Send(number, false, Whole(key, "v1", TileIn(key, 0, 0, "a"), TileIn(key, 1, 0, "b")));

            await Assert.ThrowsAsync<TileReplicaException>(() => small.WaitUntilSyncedAsync(Timeout));
        }

        [Fact]
        public async Task An_area_beyond_the_limits_is_refused_and_changes_nothing()
        {
            (ScriptedStore.Stream stream, _) = await SyncAsync();

            Assert.Throws<ArgumentException>(() => replica.Follow(Latitude, Longitude, 1_000_000, Zooms));
            Assert.Throws<ArgumentOutOfRangeException>(() => replica.Follow(91, Longitude, RadiusMeters, Zooms));

            Assert.False(stream.HasRequest());
            Assert.True(replica.Around(Latitude, Longitude, RadiusMeters, Tiles.Zoom).Complete);
        }

        [Fact]
        public async Task A_read_never_sees_two_versions_of_a_block()
        {
            (ScriptedStore.Stream stream, BlockKey key) = await SyncAsync();
            BlockUpdate even = HundredTiles(key, "even"), odd = HundredTiles(key, "odd");
            stream.Send(2, false, even);
            await EventuallyAsync(() => replica.TileCount == 100);
            int x = key.X * 32, y = key.Y * 32;
            Task[] readers = Enumerable.Range(0, 4).Select(_ => Task.Run(() =>
            {
                for (int read = 0; read < 2_000; read++)
                {
                    TileWindow window = replica.Cells(Tiles.Zoom, x, x + 31, y, y + 31);
                    Assert.Equal(100, window.Tiles.Count);
                    Assert.Single(window.Tiles.Select(tile => tile.ContentSha256).Distinct());
                }
            })).ToArray();

            for (int index = 1; index < 500; index++)
            {
                stream.Send(2, false, index % 2 == 0 ? even : odd);
            }

            await Task.WhenAll(readers);
        }

        [Fact]
        public async Task A_closed_replica_says_so()
        {
            await SyncAsync();

            await replica.DisposeAsync();

            Assert.Throws<ObjectDisposedException>(() => replica.Around(Latitude, Longitude, RadiusMeters, Tiles.Zoom));
        }

        private static string IdsOf(TileWindow window)
        {
            return string.Join(" ", window.Tiles.Select(tile => tile.TileUuid));
        }

        private static BlockUpdate Whole(BlockKey key, string version, params TileMetadata[] tiles)
        {
            var update = new BlockUpdate
            {
                Zoom = key.Zoom,
                BlockX = key.X,
                BlockY = key.Y,
                Version = ByteString.CopyFromUtf8(version),
            };
            update.Tiles.AddRange(tiles);
            return update;
        }

        private static BlockUpdate HundredTiles(BlockKey key, string name)
        {
            return Whole(key, name, Enumerable.Range(0, 100).Select(
                index => TileIn(key, index % 32, index / 32, name + index)).ToArray());
        }

        private static TileMetadata TileIn(
            BlockKey key, int column, int row, string tileUuid, FreshnessLabel label = FreshnessLabel.Fresh)
        {
            TileMetadata tile = Tiles.Downloaded((key.X * 32) + column, (key.Y * 32) + row);
            tile.TileUuid = tileUuid;
            tile.ContentSha256 = tileUuid.TrimEnd("0123456789".ToCharArray());
            tile.FreshnessLabel = label;
            return tile;
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

        /// <summary>The first request that names an area, and a block in it.</summary>
        private static async Task<(long Number, BlockKey Key)> FirstAreaAsync(ScriptedStore.Stream stream)
        {
            WatchTilesRequest request;
            do
            {
                request = await stream.ReceiveAsync();
            }
            while (request.Areas.Count == 0);

            Circle circle = request.Areas[0].Region.Circle;
            CellRectangle cells = Mercator.CellsInCircle(
                Tiles.Zoom, circle.Latitude, circle.Longitude, circle.RadiusMeters).First();
            return (request.Number, BlockKey.Of(Tiles.Zoom, cells.XFrom, cells.YFrom));
        }

        /// <summary>Follows the area, and sends its blocks, which are empty.</summary>
        private async Task<(ScriptedStore.Stream Stream, BlockKey Key)> SyncAsync()
        {
            ScriptedStore.Stream stream = await store.AcceptAsync();
            Assert.Equal(1, (await stream.ReceiveAsync()).Number);
            replica.Follow(Latitude, Longitude, RadiusMeters, Zooms);
            (long number, BlockKey key) = await FirstAreaAsync(stream);
            Assert.Equal(2, number);
            var blocks = new HashSet<BlockKey>();
            Mercator.AddBlocks(
                Tiles.Zoom, Mercator.CellsInCircle(Tiles.Zoom, Latitude, Longitude, 2 * RadiusMeters), blocks, 1_000);
            stream.Send(number, true, blocks.Select(each => Whole(each, "v1")).ToArray());
            await replica.WaitUntilSyncedAsync(Timeout);
            return (stream, key);
        }
    }
}
