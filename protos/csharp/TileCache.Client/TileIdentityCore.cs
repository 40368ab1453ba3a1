using System;
using System.Collections.Generic;
using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Linq;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;

namespace TileCache.Client
{
    /// <summary>
    /// Derives UUIDv5 (RFC 9562) from a scheme that is handed to it. It knows nothing of protobuf and keeps
    /// to C# 7, so that it can be compiled and tested wherever there is a C# compiler.
    /// </summary>
    internal sealed class TileIdentityCore
    {
        private const int MaxZoom = 22;

        private static readonly Regex Placeholder = new Regex(@"\{(\w*)\}", RegexOptions.CultureInvariant);

        private readonly byte[] namespaceBytes;
        private readonly string tileNameTemplate;
        private readonly string locationNameTemplate;
        private readonly Guid noFlight;
        private readonly HashSet<string> sources;

        public TileIdentityCore(
            string namespaceUuid,
            string tileNameTemplate,
            string locationNameTemplate,
            string noFlightUuid,
            IEnumerable<string> sources)
        {
            NamespaceUuid = ParseUuid(namespaceUuid);
            namespaceBytes = BytesOf(NamespaceUuid);
            this.tileNameTemplate = tileNameTemplate;
            this.locationNameTemplate = locationNameTemplate;
            noFlight = ParseUuid(noFlightUuid);
            this.sources = new HashSet<string>(sources, StringComparer.Ordinal);
        }

        public Guid NamespaceUuid { get; }

        /// <summary>The id of a tile; <paramref name="flightId"/> is null where no flight made it.</summary>
        /// <exception cref="ArgumentException">No such cell, or no such source.</exception>
        public Guid DeriveTileUuid(int zoom, int x, int y, string source, Guid? flightId)
        {
            if (!sources.Contains(source))
            {
                throw new ArgumentException("source is '" + source + "', which the scheme does not know", nameof(source));
            }

            Dictionary<string, string> parts = CellParts(zoom, x, y);
            parts["source"] = source;
            parts["flight_id"] = (flightId ?? noFlight).ToString("D", CultureInfo.InvariantCulture);
            return Uuid5(Expand(tileNameTemplate, parts));
        }

        /// <summary>The location hash of a cell: the same for every source and flight.</summary>
        /// <exception cref="ArgumentException">No such cell.</exception>
        public Guid DeriveLocationHash(int zoom, int x, int y)
        {
            return Uuid5(Expand(locationNameTemplate, CellParts(zoom, x, y)));
        }

        /// <summary>Derives each vector anew from the parts of its name.</summary>
        /// <exception cref="InvalidOperationException">The scheme does not give its own vectors.</exception>
        public void VerifyVectors(
            List<KeyValuePair<string, string>> tileVectors,
            List<KeyValuePair<string, string>> locationVectors)
        {
            if (tileVectors.Count == 0 || locationVectors.Count == 0)
            {
                throw new InvalidOperationException("The scheme carries no locked vectors.");
            }

            foreach (KeyValuePair<string, string> vector in tileVectors.Concat(locationVectors))
            {
                Verify(vector.Key, vector.Value);
            }

            string noFlightText = noFlight.ToString("D", CultureInfo.InvariantCulture);
            if (!tileVectors.Any(vector => vector.Key.EndsWith("/" + noFlightText, StringComparison.Ordinal)))
            {
                throw new InvalidOperationException("No locked vector proves the UUID that stands for no flight.");
            }
        }

        /// <summary>UUIDs in canonical text only: 32 digits in five groups.</summary>
        /// <exception cref="ArgumentException">Not such a text.</exception>
        public static Guid ParseUuid(string text)
        {
            if (!Guid.TryParseExact(text, "D", out Guid uuid))
            {
                throw new ArgumentException("'" + text + "' is not a UUID", nameof(text));
            }

            return uuid;
        }

        private void Verify(string name, string locked)
        {
            string derived;
            try
            {
                derived = DeriveFromName(name).ToString("D", CultureInfo.InvariantCulture);
            }
            catch (Exception error) when (error is ArgumentException || error is FormatException)
            {
                throw new InvalidOperationException(name + " cannot be derived: " + error.Message, error);
            }

            if (derived != locked)
            {
                throw new InvalidOperationException(name + " gives " + derived + ", but " + locked + " is locked.");
            }
        }

        private Guid DeriveFromName(string name)
        {
            string[] parts = name.Split('/');
            if (parts.Length != 3 && parts.Length != 5)
            {
                throw new FormatException("it has " + parts.Length.ToString(CultureInfo.InvariantCulture) + " parts");
            }

            int zoom = int.Parse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture);
            int x = int.Parse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture);
            int y = int.Parse(parts[2], NumberStyles.None, CultureInfo.InvariantCulture);
            return parts.Length == 3
                ? DeriveLocationHash(zoom, x, y)
                : DeriveTileUuid(zoom, x, y, parts[3], ParseUuid(parts[4]));
        }

        private static Dictionary<string, string> CellParts(int zoom, int x, int y)
        {
            CheckRange(nameof(zoom), zoom, MaxZoom);
            int last = (1 << zoom) - 1;
            CheckRange(nameof(x), x, last);
            CheckRange(nameof(y), y, last);
            return new Dictionary<string, string>(StringComparer.Ordinal)
            {
                { "zoom", zoom.ToString(CultureInfo.InvariantCulture) },
                { "x", x.ToString(CultureInfo.InvariantCulture) },
                { "y", y.ToString(CultureInfo.InvariantCulture) },
            };
        }

        private static void CheckRange(string name, int value, int last)
        {
            if (value < 0 || value > last)
            {
                string range = "0.." + last.ToString(CultureInfo.InvariantCulture);
                throw new ArgumentOutOfRangeException(name, value, name + " is not within " + range);
            }
        }

        private static string Expand(string template, Dictionary<string, string> parts)
        {
            return Placeholder.Replace(template, match =>
            {
                return parts.TryGetValue(match.Groups[1].Value, out var part)
                    ? part
                    : throw new FormatException("the scheme's template has the unknown placeholder " + match.Value);
            });
        }

        [SuppressMessage("Security", "CA5350", Justification = "UUIDv5 is defined with SHA-1 and keeps no secret.")]
        [SuppressMessage("Performance", "CA1850", Justification = "HashData is not there on every runtime.")]
        private Guid Uuid5(string name)
        {
            byte[] digest;
            using (SHA1 sha1 = SHA1.Create())
            {
                digest = sha1.ComputeHash(namespaceBytes.Concat(Encoding.UTF8.GetBytes(name)).ToArray());
            }

            digest[6] = (byte)((digest[6] & 0x0F) | 0x50);
            digest[8] = (byte)((digest[8] & 0x3F) | 0x80);
            // Guid(byte[]) would take the first three groups in the machine's order; text is in the RFC's.
            return new Guid(string.Concat(digest.Take(16).Select(HexOf)));
        }

        private static byte[] BytesOf(Guid uuid)
        {
            string digits = uuid.ToString("N", CultureInfo.InvariantCulture);
            return Enumerable.Range(0, 16).Select(index => Convert.ToByte(digits.Substring(2 * index, 2), 16)).ToArray();
        }

        private static string HexOf(byte value)
        {
            return value.ToString("x2", CultureInfo.InvariantCulture);
        }
    }
}
