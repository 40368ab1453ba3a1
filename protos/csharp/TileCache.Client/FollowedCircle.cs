using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;

namespace TileCache.Client
{
    /// <summary>
    /// The circle that is followed: one that has a margin around the circle that the caller needs, so that a moving
    /// caller seldom needs another one. Keeps to C# 7, so that it can be compiled and tested wherever there is a C#
    /// compiler.
    /// </summary>
    internal sealed class FollowedCircle
    {
        private const double Margin = 0.25;
        private const double LookAheadSeconds = 10;
        private const double MaxSpeedMps = 100000;

        private readonly double neededMeters;

        private FollowedCircle(double latitude, double longitude, double radiusMeters, double neededMeters, int[] zooms)
        {
            Latitude = latitude;
            Longitude = longitude;
            RadiusMeters = radiusMeters;
            this.neededMeters = neededMeters;
            Zooms = zooms;
        }

        public double Latitude { get; }

        public double Longitude { get; }

        public double RadiusMeters { get; }

        public IReadOnlyList<int> Zooms { get; }

        /// <summary>A circle around the one that is needed, most of its margin ahead of the caller.</summary>
        /// <param name="latitude">Of the centre of the circle that is needed.</param>
        /// <param name="longitude">Of that centre.</param>
        /// <param name="radiusMeters">Its radius.</param>
        /// <param name="zooms">0 to 22 each.</param>
        /// <param name="northMps">The caller's velocity, northward.</param>
        /// <param name="eastMps">The caller's velocity, eastward.</param>
        /// <returns>The circle.</returns>
        /// <exception cref="ArgumentException">A position, a radius or a zoom is out of range.</exception>
        public static FollowedCircle Around(
            double latitude, double longitude, double radiusMeters, IEnumerable<int> zooms, double northMps, double eastMps)
        {
            int[] levels = InOrder(zooms);
            CheckCircle(latitude, longitude, radiusMeters);
            if (levels.Length == 0)
            {
                throw new ArgumentException("zooms must not be empty", nameof(zooms));
            }

            foreach (int zoom in levels)
            {
                CheckRange(nameof(zooms), zoom, 0, Mercator.MaxZoom);
            }

            CheckRange(nameof(northMps), northMps, -MaxSpeedMps, MaxSpeedMps);
            CheckRange(nameof(eastMps), eastMps, -MaxSpeedMps, MaxSpeedMps);
            double speed = Math.Sqrt((northMps * northMps) + (eastMps * eastMps));
            double margin = Math.Max(Margin * radiusMeters, LookAheadSeconds * speed);
            double reach = Math.Min(radiusMeters + margin, Mercator.MaxRadiusMeters);
            if (speed > 0)
            {
                // Not by all of it: rounding must not put the circle that is needed outside.
                double aheadSeconds = 0.9 * margin / speed;
                (latitude, longitude) = Mercator.Move(
                    latitude, longitude, northMps * aheadSeconds, eastMps * aheadSeconds);
            }

            return new FollowedCircle(latitude, longitude, reach, radiusMeters, levels);
        }

        /// <exception cref="ArgumentException">A position or a radius is out of range.</exception>
        public static void CheckCircle(double latitude, double longitude, double radiusMeters)
        {
            CheckRange(nameof(latitude), latitude, -90, 90);
            CheckRange(nameof(longitude), longitude, -180, 180);
            CheckRange(nameof(radiusMeters), radiusMeters, 0, Mercator.MaxRadiusMeters);
            if (radiusMeters == 0)
            {
                throw new ArgumentOutOfRangeException(nameof(radiusMeters), "radiusMeters must be more than 0");
            }
        }

        /// <exception cref="ArgumentException">The value is out of range.</exception>
        public static void CheckRange(string name, double value, double least, double most)
        {
            // Written so that a value that is not a number is refused.
            if (!(value >= least && value <= most))
            {
                string range = least.ToString(CultureInfo.InvariantCulture) + ".."
                    + most.ToString(CultureInfo.InvariantCulture);
                throw new ArgumentOutOfRangeException(name, value, name + " is not within " + range);
            }
        }

        /// <summary>Whether a circle lies within this one, which is not much larger than needed.</summary>
        public bool Suffices(double latitude, double longitude, double radiusMeters, IEnumerable<int> zooms)
        {
            return radiusMeters == neededMeters
                && InOrder(zooms).SequenceEqual(Zooms)
                && Mercator.DistanceMeters(Latitude, Longitude, latitude, longitude) + radiusMeters <= RadiusMeters;
        }

        private static int[] InOrder(IEnumerable<int> zooms)
        {
            return zooms.Distinct().OrderBy(zoom => zoom).ToArray();
        }
    }
}
