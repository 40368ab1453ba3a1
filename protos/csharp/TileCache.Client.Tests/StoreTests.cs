using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using Grpc.Core;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    /// <summary>Against a running daemon. Each test has a row of cells of its own.</summary>
    [Collection(DaemonGroup.Name)]
    public sealed class StoreTests
    {
        private readonly TileMetadataStore.TileMetadataStoreClient store;

        public StoreTests(Daemon daemon)
        {
            store = daemon.Store;
        }

        [Fact]
        public async Task The_server_names_the_same_namespace_and_its_limits()
        {
            GetServerInfoResponse info = await store.GetServerInfoAsync(
                new GetServerInfoRequest(), deadline: Daemon.Soon);

            Assert.Equal(TileIdentities.NamespaceUuid.ToString(), info.NamespaceUuid);
            Assert.True(Version.Parse(info.ContractVersion) >= new Version(1, 5, 0), info.ContractVersion);
            Assert.True(info.DatabaseAvailable);
            Assert.True(info.Limits.MaxBatchTiles > 0);
        }

        [Fact]
        public async Task A_thousand_keys_have_the_same_identity_in_both_languages()
        {
            var request = new DeriveTileIdentityRequest();
            request.Keys.AddRange(RandomKeys(1000));

            DeriveTileIdentityResponse derived = await store.DeriveTileIdentityAsync(request, deadline: Daemon.Soon);

            Assert.Equal(
                request.Keys.Select(key => TileIdentities.DeriveTileUuid(key).ToString()),
                derived.Identities.Select(identity => identity.TileUuid));
            Assert.Equal(
                request.Keys.Select(key => TileIdentities.DeriveLocationHash(key.Zoom, key.X, key.Y).ToString()),
                derived.Identities.Select(identity => identity.LocationHash));
        }

        [Fact]
        public async Task An_inserted_tile_is_read_back_under_its_derived_id()
        {
            TileMetadata tile = Tiles.Downloaded(1000, 100);

            InsertTileResponse inserted = await store.InsertTileAsync(
                new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon);
            string tileUuid = TileIdentities.DeriveTileUuid(tile.Key).ToString();
            GetTileResponse found = await store.GetTileAsync(
                new GetTileRequest { Tile = new TileRef { TileUuid = tileUuid } }, deadline: Daemon.Soon);

            Assert.Equal(InsertOutcome.Inserted, inserted.Outcome);
            Assert.Equal(inserted.Tile, found.Tile);
            Assert.Equal(tile.CapturedAt, found.Tile.CapturedAt);
            Assert.Equal(tile.FilePath, found.Tile.FilePath);
        }

        [Fact]
        public async Task Each_batch_is_acknowledged_in_order_and_a_refused_tile_keeps_no_other_out()
        {
            TileMetadata refused = Tiles.Downloaded(1001, 200);
            refused.ContentSha256 = "not a hash";
            var mixed = new BulkInsertTilesRequest { Tiles = { Tiles.Downloaded(1000, 200), refused } };
            var again = new BulkInsertTilesRequest { Tiles = { Tiles.Downloaded(1000, 200) } };

            IReadOnlyList<BulkInsertTilesResponse> answers = await BulkInsertAsync(mixed, again);

            Assert.Equal(2, answers.Count);
            Assert.Equal(0, answers[0].BatchIndex);
            Assert.Equal(1, answers[0].InsertedCount);
            RefusedTile refusal = Assert.Single(answers[0].Refused);
            Assert.Equal(1, refusal.Index);
            Assert.Equal((int)StatusCode.InvalidArgument, refusal.Code);
            Assert.Equal("INVALID_REQUEST", refusal.Reason);
            Assert.Equal("tiles[1].content_sha256", refusal.Field);
            Assert.Equal(1, answers[1].BatchIndex);
            Assert.Equal(1, answers[1].AlreadyPresentCount);
        }

        [Fact]
        public async Task A_box_gives_the_tiles_of_its_cells_and_no_other()
        {
            List<TileMetadata> inside = Square(2000, 300, 3).ToList();
            TileMetadata outside = Tiles.Downloaded(2003, 300);
            await BulkInsertAsync(new BulkInsertTilesRequest { Tiles = { inside, outside } });
            TileMetadata northWest = await GetAsync(inside[0].Key);
            TileMetadata southEast = await GetAsync(inside[inside.Count - 1].Key);

            // From centre to centre: overlaps just these cells.
            var region = new Region
            {
                BoundingBox = new BoundingBox
                {
                    South = southEast.Latitude,
                    West = northWest.Longitude,
                    North = northWest.Latitude,
                    East = southEast.Longitude,
                },
            };
            var found = new HashSet<string>();
            using AsyncServerStreamingCall<QueryTilesResponse> call = store.QueryTiles(
                new QueryTilesRequest { Zoom = Tiles.Zoom, Region = region }, deadline: Daemon.Soon);
            await foreach (QueryTilesResponse chunk in call.ResponseStream.ReadAllAsync())
            {
                found.UnionWith(chunk.Tiles.Select(tile => tile.TileUuid));
            }

            Assert.Equal(inside.Select(tile => TileIdentities.DeriveTileUuid(tile.Key).ToString()).ToHashSet(), found);
        }

        [Fact]
        public async Task Uploads_are_listed_until_they_are_marked_with_their_content()
        {
            Guid flight = Guid.NewGuid();
            TileMetadata tile = Tiles.Onboard(1000, 400, flight);
            await store.InsertTileAsync(new InsertTileRequest { Tile = tile }, deadline: Daemon.Soon);

            TileMetadata pending = Assert.Single(await ListPendingAsync(flight));
            MarkOutcome wrong = await MarkAsync(pending.TileUuid, Tiles.Hash('b'));
            MarkOutcome right = await MarkAsync(pending.TileUuid, pending.ContentSha256);

            Assert.Equal(TileIdentities.DeriveTileUuid(tile.Key).ToString(), pending.TileUuid);
            Assert.Equal(MarkOutcome.ContentDiffers, wrong);
            Assert.Equal(MarkOutcome.Marked, right);
            Assert.Empty(await ListPendingAsync(flight));
        }

        private static IEnumerable<TileKey> RandomKeys(int count)
        {
            var random = new Random(20250601);
            for (int index = 0; index < count; index++)
            {
                int zoom = random.Next(0, 23);
                var key = new TileKey { Zoom = zoom, X = random.Next(1 << zoom), Y = random.Next(1 << zoom) };
                key.Source = index % 2 == 0 ? TileSource.Googlemaps : TileSource.OnboardIngest;
                if (index % 3 != 0)
                {
                    var flight = new byte[16];
                    random.NextBytes(flight);
                    key.FlightId = new Guid(flight).ToString();
                }

                yield return key;
            }
        }

        private static IEnumerable<TileMetadata> Square(int x, int y, int edge)
        {
            return Enumerable.Range(0, edge * edge).Select(
                index => Tiles.Downloaded(x + (index % edge), y + (index / edge)));
        }

        private async Task<IReadOnlyList<BulkInsertTilesResponse>> BulkInsertAsync(params BulkInsertTilesRequest[] batches)
        {
            var answers = new List<BulkInsertTilesResponse>();
            using AsyncDuplexStreamingCall<BulkInsertTilesRequest, BulkInsertTilesResponse> call =
                store.BulkInsertTiles(deadline: Daemon.Soon);
            foreach (BulkInsertTilesRequest batch in batches)
            {
                await call.RequestStream.WriteAsync(batch);
            }

            await call.RequestStream.CompleteAsync();
            while (await call.ResponseStream.MoveNext(CancellationToken.None))
            {
                answers.Add(call.ResponseStream.Current);
            }

            return answers;
        }

        private async Task<TileMetadata> GetAsync(TileKey key)
        {
            GetTileResponse answer = await store.GetTileAsync(
                new GetTileRequest { Tile = new TileRef { Key = key } }, deadline: Daemon.Soon);
            return answer.Tile;
        }

        private async Task<IReadOnlyList<TileMetadata>> ListPendingAsync(Guid flight)
        {
            ListPendingUploadsResponse page = await store.ListPendingUploadsAsync(
                new ListPendingUploadsRequest { FlightId = flight.ToString() }, deadline: Daemon.Soon);
            return page.Tiles;
        }

        private async Task<MarkOutcome> MarkAsync(string tileUuid, string contentSha256)
        {
            var tile = new UploadedTile { TileUuid = tileUuid, ContentSha256 = contentSha256 };
            MarkUploadedResponse answer = await store.MarkUploadedAsync(
                new MarkUploadedRequest { Tiles = { tile } }, deadline: Daemon.Soon);
            return Assert.Single(answer.Outcomes);
        }
    }
}
