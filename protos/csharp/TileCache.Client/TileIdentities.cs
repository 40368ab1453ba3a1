using System;
using System.Collections.Generic;
using System.Linq;
using Google.Protobuf.Collections;
using Google.Protobuf.Reflection;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>
    /// Derives the ids of tiles and the location hashes of cells. The scheme is defined in
    /// tilecache/v1/tile_identity.proto and read from the generated descriptor: this class holds no copy of a constant.
    /// </summary>
    public static class TileIdentities
    {
        private static readonly TileIdentityScheme Scheme =
            TileIdentityReflection.Descriptor.GetOptions().GetExtension(TileIdentityExtensions.TileIdentity);

        private static readonly Dictionary<TileSource, string> SourceTexts = ReadSourceTexts();

        private static readonly TileIdentityCore Core = new TileIdentityCore(
            Scheme.NamespaceUuid,
            Scheme.TileNameTemplate,
            Scheme.LocationNameTemplate,
            Scheme.NoFlightUuid,
            SourceTexts.Values);

        /// <summary>The namespace of all identities.</summary>
        public static Guid NamespaceUuid => Core.NamespaceUuid;

        /// <summary>The canonical text of a source, as it stands in names and in the database.</summary>
        /// <param name="source">Any source but <see cref="TileSource.Unspecified"/>.</param>
        /// <returns>For example <c>googlemaps</c>.</returns>
        /// <exception cref="ArgumentException">The contract has no such source.</exception>
        public static string GetSourceText(TileSource source)
        {
            return SourceTexts.TryGetValue(source, out string? text)
                ? text
                : throw new ArgumentException($"source is {source}, which the contract does not know", nameof(source));
        }

        /// <summary>The id of a tile.</summary>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="x">Column, 0 to 2^zoom - 1.</param>
        /// <param name="y">Row, counted southward, 0 to 2^zoom - 1.</param>
        /// <param name="source">Where the tile comes from.</param>
        /// <param name="flightId">The flight that made the tile; null where none did.</param>
        /// <returns>Its UUIDv5. <c>ToString()</c> gives the text that travels.</returns>
        /// <exception cref="ArgumentException">The contract has no such cell or source.</exception>
        public static Guid DeriveTileUuid(int zoom, int x, int y, TileSource source, Guid? flightId)
        {
            return Core.DeriveTileUuid(zoom, x, y, GetSourceText(source), flightId);
        }

        /// <summary>The id of a tile.</summary>
        /// <param name="key">Its key.</param>
        /// <returns>Its UUIDv5.</returns>
        /// <exception cref="ArgumentException">The contract has no such key.</exception>
        public static Guid DeriveTileUuid(TileKey key)
        {
            ArgumentNullException.ThrowIfNull(key);
            Guid? flightId = key.HasFlightId ? TileIdentityCore.ParseUuid(key.FlightId) : (Guid?)null;
            return DeriveTileUuid(key.Zoom, key.X, key.Y, key.Source, flightId);
        }

        /// <summary>The location hash of a cell: the same for every source and flight.</summary>
        /// <param name="zoom">0 to 22.</param>
        /// <param name="x">Column, 0 to 2^zoom - 1.</param>
        /// <param name="y">Row, counted southward, 0 to 2^zoom - 1.</param>
        /// <returns>Its UUIDv5.</returns>
        /// <exception cref="ArgumentException">The contract has no such cell.</exception>
        public static Guid DeriveLocationHash(int zoom, int x, int y)
        {
            return Core.DeriveLocationHash(zoom, x, y);
        }

        /// <summary>
        /// Proves this scheme and this code against the contract's locked vectors. Call it once when a program starts.
        /// </summary>
        /// <exception cref="InvalidOperationException">A vector is not met: no id of this build can be trusted.</exception>
        public static void VerifyLockedVectors()
        {
            Core.VerifyVectors(Pairs(Scheme.TileVectors), Pairs(Scheme.LocationVectors));
        }

        private static Dictionary<TileSource, string> ReadSourceTexts()
        {
            return TileIdentityReflection.Descriptor
                .FindTypeByName<EnumDescriptor>(nameof(TileSource))
                .Values
                .Where(value => value.GetOptions()?.HasExtension(TileIdentityExtensions.SourceText) == true)
                .ToDictionary(
                    value => (TileSource)value.Number,
                    value => value.GetOptions().GetExtension(TileIdentityExtensions.SourceText));
        }

        private static List<KeyValuePair<string, string>> Pairs(RepeatedField<TileIdentityVector> vectors)
        {
            return vectors.Select(vector => KeyValuePair.Create(vector.Name, vector.Uuid)).ToList();
        }
    }
}
