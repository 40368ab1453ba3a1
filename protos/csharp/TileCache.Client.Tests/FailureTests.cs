using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;
using Grpc.Core;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>How calls fail, and what a caller can read from it.</summary>
    [Collection(DaemonGroup.Name)]
    public sealed class FailureTests
    {
        private readonly TileMetadataStore.TileMetadataStoreClient store;

        public FailureTests(Daemon daemon)
        {
            store = daemon.Store;
        }

        [Fact]
        public async Task Bad_input_names_each_field()
        {
            TileMetadata tile = Tiles.Downloaded(1000, 500);
            tile.Key.X = -1;
            tile.FilePath = "../outside.jpg";

            RpcException error = await Assert.ThrowsAsync<RpcException>(
                async () => await store.InsertTileAsync(new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon));

            Assert.Equal(StatusCode.InvalidArgument, error.StatusCode);
            AssertReason("INVALID_REQUEST", error);
            IReadOnlyList<FieldViolation> violations = ErrorDetails.From(error).Violations;
            Assert.Contains(violations, violation => violation.Field == "tile.file_path");
            Assert.Contains(violations, violation => violation.Field == "tile.key.x");
        }

        [Fact]
        public async Task A_tile_that_is_not_there_is_not_found()
        {
            var request = new GetTileRequest { Tile = new TileRef { TileUuid = Guid.NewGuid().ToString() } };

            RpcException error = await Assert.ThrowsAsync<RpcException>(
                async () => await store.GetTileAsync(request, deadline: Daemon.Soon));

            Assert.Equal(StatusCode.NotFound, error.StatusCode);
            AssertReason("TILE_NOT_FOUND", error);
        }

        [Fact]
        public async Task Another_content_under_the_same_key_is_refused()
        {
            TileMetadata tile = Tiles.Downloaded(1000, 600);
            await store.InsertTileAsync(new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon);
            tile.ContentSha256 = Tiles.Hash('b');

            RpcException error = await Assert.ThrowsAsync<RpcException>(
                async () => await store.InsertTileAsync(new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon));

            Assert.Equal(StatusCode.AlreadyExists, error.StatusCode);
            AssertReason("CONTENT_CONFLICT", error);
        }

        [Fact]
        public async Task A_passed_deadline_ends_a_call_that_waits()
        {
            using AsyncDuplexStreamingCall<BulkInsertTilesRequest, BulkInsertTilesResponse> call =
                store.BulkInsertTiles(deadline: DateTime.UtcNow.AddMilliseconds(300));

            RpcException error = await Assert.ThrowsAsync<RpcException>(
                () => call.ResponseStream.MoveNext(CancellationToken.None));

            Assert.Equal(StatusCode.DeadlineExceeded, error.StatusCode);
        }

        [Fact]
        public async Task A_cancelled_stream_keeps_what_was_acknowledged()
        {
            TileMetadata tile = Tiles.Downloaded(1000, 700);
            using var cancellation = new CancellationTokenSource();
            using AsyncDuplexStreamingCall<BulkInsertTilesRequest, BulkInsertTilesResponse> call =
                store.BulkInsertTiles(deadline: Daemon.Soon, cancellationToken: cancellation.Token);
            await call.RequestStream.WriteAsync(new BulkInsertTilesRequest { Tiles = { tile } });
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));

            await cancellation.CancelAsync();
            RpcException error = await Assert.ThrowsAsync<RpcException>(
                () => call.ResponseStream.MoveNext(CancellationToken.None));
            GetTileResponse kept = await store.GetTileAsync(
                new GetTileRequest { Tile = new TileRef { Key = tile.Key } },
                deadline: Daemon.Soon,
                cancellationToken: CancellationToken.None);

            Assert.Equal(StatusCode.Cancelled, error.StatusCode);
            Assert.Equal(tile.ContentSha256, kept.Tile.ContentSha256);
        }

        private static void AssertReason(string reason, RpcException error)
        {
            Assert.Equal(reason, ErrorDetails.From(error).Reason);
        }
    }
}
