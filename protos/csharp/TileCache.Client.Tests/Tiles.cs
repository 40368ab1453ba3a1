using System;
using Google.Protobuf.WellKnownTypes;
using TileCache.V1;

namespace TileCache.Client.Tests
{
    /// <summary>Makes tiles to insert.</summary>
    internal static class Tiles
    {
        public const int Zoom = 18;

        private static readonly DateTime CapturedAt = new DateTime(2025, 6, 1, 12, 0, 0, DateTimeKind.Utc);

        public static TileMetadata Downloaded(int x, int y)
        {
            return Make(new TileKey { Zoom = Zoom, X = x, Y = y, Source = TileSource.Googlemaps });
        }

        public static TileMetadata Onboard(int x, int y, Guid flightId)
        {
            return Make(new TileKey
            {
                Zoom = Zoom,
                X = x,
                Y = y,
                Source = TileSource.OnboardIngest,
                FlightId = flightId.ToString(),
            });
        }

        /// <summary>The SHA-256 that a content of this letter stands for.</summary>
        public static string Hash(char letter)
        {
            return new string(letter, 64);
        }

        private static TileMetadata Make(TileKey key)
        {
            return new TileMetadata
            {
                Key = key,
                FilePath = $"{key.Zoom}/{key.X}/{key.Y}.jpg",
                ContentSha256 = Hash('a'),
                DiskBytes = 20_000,
                CapturedAt = Timestamp.FromDateTime(CapturedAt),
            };
        }
    }
}
