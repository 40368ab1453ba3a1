using System;
using System.Collections.Generic;
using System.Linq;
using Google.Protobuf.Collections;
using TileCache.V1;
using Xunit;

namespace TileCache.Client.Tests
{
    public sealed class TileIdentitiesTests
    {
        private static readonly Guid Flight = Guid.Parse("3f2504e0-4f89-41d3-9a0c-0305e82c3301");

        private static readonly TileIdentityScheme Scheme =
            TileIdentityReflection.Descriptor.GetOptions().GetExtension(TileIdentityExtensions.TileIdentity);

        [Fact]
        public void The_locked_vectors_are_met()
        {
            TileIdentities.VerifyLockedVectors();
        }

        [Fact]
        public void A_tile_without_a_flight_has_its_locked_id()
        {
            Guid id = TileIdentities.DeriveTileUuid(18, 154321, 95812, TileSource.Googlemaps, null);

            Assert.Equal("17f7ac7e-6c25-5050-a7cd-b6578cd5f323", id.ToString());
        }

        [Fact]
        public void A_tile_of_a_flight_has_its_locked_id()
        {
            var key = new TileKey
            {
                Zoom = 18,
                X = 154321,
                Y = 95812,
                Source = TileSource.OnboardIngest,
                FlightId = Flight.ToString(),
            };

            Assert.Equal("888b449f-12f1-5b22-a9a4-b78bfbb4a300", TileIdentities.DeriveTileUuid(key).ToString());
        }

        [Fact]
        public void A_cell_has_its_locked_location_hash()
        {
            Guid hash = TileIdentities.DeriveLocationHash(18, 154321, 95812);

            Assert.Equal("8d180ffb-bd42-5cb4-a4d6-628829b798b6", hash.ToString());
        }

        [Fact]
        public void Sources_have_their_canonical_texts()
        {
            Assert.Equal("googlemaps", TileIdentities.GetSourceText(TileSource.Googlemaps));
            Assert.Equal("onboard_ingest", TileIdentities.GetSourceText(TileSource.OnboardIngest));
        }

        [Theory]
        [InlineData(-1, 0, 0)]
        [InlineData(23, 0, 0)]
        [InlineData(3, 8, 0)]
        [InlineData(3, 0, -1)]
        public void A_cell_that_does_not_exist_is_refused(int zoom, int x, int y)
        {
            Assert.Throws<ArgumentOutOfRangeException>(() => TileIdentities.DeriveLocationHash(zoom, x, y));
        }

        [Fact]
        public void An_unspecified_source_is_refused()
        {
            Assert.Throws<ArgumentException>(
                () => TileIdentities.DeriveTileUuid(0, 0, 0, TileSource.Unspecified, null));
        }

        [Fact]
        public void A_malformed_flight_is_refused()
        {
            var key = new TileKey { Source = TileSource.OnboardIngest, FlightId = "flight 7" };

            Assert.Throws<ArgumentException>(() => TileIdentities.DeriveTileUuid(key));
        }

        [Theory]
        [InlineData("namespace_uuid")]
        [InlineData("tile_name_template")]
        [InlineData("location_name_template")]
        [InlineData("no_flight_uuid")]
        [InlineData("source_text")]
        public void One_changed_letter_of_the_scheme_is_caught(string changed)
        {
            string Text(string name, string text) => name == changed ? ChangeOneLetter(text) : text;
            var core = new TileIdentityCore(
                Text("namespace_uuid", Scheme.NamespaceUuid),
                Text("tile_name_template", Scheme.TileNameTemplate),
                Text("location_name_template", Scheme.LocationNameTemplate),
                Text("no_flight_uuid", Scheme.NoFlightUuid),
                new[] { Text("source_text", "googlemaps"), "onboard_ingest" });

            Assert.Throws<InvalidOperationException>(
                () => core.VerifyVectors(Pairs(Scheme.TileVectors), Pairs(Scheme.LocationVectors)));
        }

        private static string ChangeOneLetter(string text)
        {
            return text.Remove(text.Length - 1) + (text.EndsWith('1') ? "2" : "1");
        }

        private static List<KeyValuePair<string, string>> Pairs(RepeatedField<TileIdentityVector> vectors)
        {
            return vectors.Select(vector => KeyValuePair.Create(vector.Name, vector.Uuid)).ToList();
        }
    }
}
